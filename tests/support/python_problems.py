"""Problems in the form of HumanEval, made up: each uses something else of Python, as the published ones together do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A prompt that a solution continues, and a test that calls the function by another name."""

    entry_point: str
    prompt: str
    canonical_solution: str
    test: str


def _problem(entry_point: str, signature: str, body: str, asserts: list[str], before: str = "") -> Problem:
    checks = "".join(f"    assert {line}\n" for line in asserts)
    return Problem(
        entry_point,
        prompt=f'{before}def {entry_point}{signature}:\n    """What its tests say."""\n',
        canonical_solution="".join(f"    {line}\n" for line in body.splitlines()),
        test=f"\nMETADATA = {{'author': 'made up'}}\n\n\ndef check(candidate):\n{checks}",
    )


PROBLEMS = [
    _problem(
        "gaps",
        "(numbers: List[float], most: float) -> List[Tuple[int, float]]",
        "return [(i, b - a) for i, (a, b) in enumerate(zip(numbers, numbers[1:])) if b - a > most]",
        ["candidate([1.0, 2.5, 2.75], 0.5) == [(0, 1.5)]", "candidate([], 0.5) == []"],
        before="from typing import List, Tuple\n\n\n",
    ),
    _problem(
        "decode",
        "(text: str)",
        "return encode(encode(text))",
        ["all(candidate(encode(word)) == word for word in ('abcxyz', '', 'river' * 50))"],
        before="def encode(text: str):\n    return ''.join(chr((ord(c) - 97 + 9) % 27 + 97) for c in text)\n\n\n",
    ),
    _problem(
        "towers",
        "(discs, start='a', end='c', spare='b')",
        "if not discs:\n    return []\n"
        "before, after = towers(discs - 1, start, spare, end), towers(discs - 1, spare, end, start)\n"
        "return before + [(start, end)] + after",
        ["candidate(2) == [('a', 'b'), ('a', 'c'), ('b', 'c')]", "len(candidate(8)) == 255"],
    ),
    _problem(
        "root",
        "(coefficients: list)",
        "import math\nlow, high = -100.0, 100.0\nwhile high - low > 1e-12:\n    middle = (low + high) / 2\n"
        "    if sum(c * math.pow(middle, n) for n, c in enumerate(coefficients)) > 0:\n        high = middle\n"
        "    else:\n        low = middle\nreturn low",
        ["abs(candidate([-2.0, 1.0]) - 2.0) < 1e-6", "abs(candidate([-8.0, 0.0, 0.0, 1.0]) - 2.0) < 1e-6"],
    ),
    _problem(
        "digest",
        "(text)",
        "import hashlib\nreturn hashlib.md5(text.encode('ascii')).hexdigest() if text else None",
        ["candidate('') is None", "candidate('abc') == '900150983cd24fb0d6963f7d28e17f72'"],
    ),
    _problem(
        "words",
        "(text)",
        "import re\nfrom collections import Counter\n"
        "return dict(Counter(re.findall(r'[a-zß]+', text.lower())).most_common(2))",
        ["candidate('One, two; TWO: one one!') == {'one': 3, 'two': 2}", "candidate('Straße') == {'straße': 1}"],
    ),
    _problem(
        "power",
        "(base, exponent, modulus=None)",
        "return pow(base, exponent, modulus)",
        ["candidate(2, 5000) == 1 << 5000", "candidate(7, 10 ** 30, 10 ** 9 + 7) == pow(7, 10 ** 30, 10 ** 9 + 7)"],
    ),
    _problem(
        "first_even",
        "(numbers)",
        "evens = (n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n % 2 == 0)\n"
        "return next(evens, None)",
        ["candidate([1, 'a', None, 2.0, True, 4, 6]) == 4", "candidate([]) is None", "candidate((3,)) is None"],
    ),
    _problem(
        "unique",
        "(rows)",
        "rows.sort(key=lambda row: (len(row), row))\nreturn {tuple(row) for row in rows}, rows",
        ["candidate([[2, 1], [0], [2, 1]]) == ({(0,), (2, 1)}, [[0], [2, 1], [2, 1]])"],
    ),
    _problem(
        "half",
        "(number)",
        "if number < 0:\n    raise ValueError('negative')\nreturn number / 2",
        ["candidate(3) == 1.5", "raises(candidate, -1)"],
        before="def raises(function, *arguments):\n    try:\n        function(*arguments)\n"
        "    except ValueError as error:\n        return str(error) == 'negative'\n    return False\n\n\n",
    ),
]
