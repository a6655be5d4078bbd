"""Short Python functions to complete from a signature and a docstring, scored by running three asserts.

What a function does decides its split, whatever it and its parameters are called: a test function was never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from mergebench_ray.sandbox.runner import Program, check_of, run_programs
from mergebench_ray.suites.smollm2_mini.generate.common import Draft, Item, Kind, build, split_of

_DRAWS = 2000
_NAMES = ("solve", "compute", "process", "answer", "func", "task")
_NUMBER_LISTS = ("[1, 2, 3, 4, 5, 6]", "[-7, 12, 9, 0, -4, 15, 20]", "[8, 3, 10, 7, -2, 30, 5, 5]")
_TEXTS = ("'Banana Bread and Tea'", "'hello world'", "'A quick brown fox sat'")
_COUNTS = ("1", "4", "9")


@dataclass(frozen=True)
class Function:
    """One function to write.

    Attributes:
        text: the docstring, with `{a}` and `{b}` where the parameters are named.
        body: its lines, without indentation, with the same places.
        calls: argument lists to try, as Python text.
        style: which names its parameters may have.
    """

    text: str
    body: tuple[str, ...]
    calls: tuple[str, ...]
    style: str


_PARAMETERS = {
    "numbers": (("xs",), ("nums",), ("values",), ("numbers",)),
    "pair": (("xs", "ys"), ("a", "b"), ("left", "right")),
    "text": (("s",), ("text",), ("word",)),
    "count": (("n",), ("k",), ("limit",)),
    "mapping": (("d",), ("data",), ("table",)),
    "two": (("a", "b"), ("x", "y"), ("m", "n")),
}


def _filter(rng: Random) -> tuple[str, str]:
    number, divisor = rng.randint(2, 12), rng.randint(3, 5)
    return rng.choice(
        (
            ("even numbers", "x % 2 == 0"),
            ("odd numbers", "x % 2 == 1"),
            ("positive numbers", "x > 0"),
            ("negative numbers", "x < 0"),
            (f"numbers greater than {number}", f"x > {number}"),
            (f"numbers less than {number}", f"x < {number}"),
            (f"numbers divisible by {divisor}", f"x % {divisor} == 0"),
            (f"numbers other than {number}", f"x != {number}"),
        )
    )


def _map(rng: Random) -> tuple[str, str]:
    number = rng.randint(2, 9)
    return rng.choice(
        (
            ("squares", "x * x"),
            ("cubes", "x ** 3"),
            ("doubles", "2 * x"),
            ("absolute values", "abs(x)"),
            (f"multiples by {number}", f"x * {number}"),
            (f"remainders by {number}", f"x % {number}"),
        )
    )


def _numbers(text: str, *body: str) -> Function:
    return Function(text, body, _NUMBER_LISTS, "numbers")


def _texts(text: str, *body: str) -> Function:
    return Function(text, body, _TEXTS, "text")


def _list(rng: Random) -> Function:
    (which, test), (what, value) = _filter(rng), _map(rng)
    return _numbers(
        f"Return a list with the {what} of the {which} in {{a}}.", f"return [{value} for x in {{a}} if {test}]"
    )


def _total(rng: Random) -> Function:
    (which, test), (what, value) = _filter(rng), _map(rng)
    if rng.random() < 0.3:
        return _numbers(f"Return the sum of the {which} in {{a}}.", f"return sum(x for x in {{a}} if {test})")
    return _numbers(
        f"Return the sum of the {what} of the {which} in {{a}}.", f"return sum({value} for x in {{a}} if {test})"
    )


def _count(rng: Random) -> Function:
    which, test = _filter(rng)
    return _numbers(f"Return how many {which} are in {{a}}.", f"return sum(1 for x in {{a}} if {test})")


def _extreme(rng: Random) -> Function:
    (what, value), (word, name) = _map(rng), rng.choice((("largest", "max"), ("smallest", "min")))
    return _numbers(f"Return the {word} of the {what} of {{a}}.", f"return {name}({value} for x in {{a}})")


def _quantifier(rng: Random) -> Function:
    (which, test), (word, name) = _filter(rng), rng.choice((("all", "all"), ("any", "any")))
    return _numbers(f"Return whether {word} of {{a}} are {which}.", f"return {name}({test} for x in {{a}})")


def _loop(rng: Random) -> Function:
    (which, test), number = _filter(rng), rng.randint(1, 9)
    return _numbers(
        f"Start with {number} and add the {which} in {{a}}, in a loop.",
        f"total = {number}",
        "for x in {a}:",
        f"    if {test}:",
        "        total += x",
        "return total",
    )


def _slice(rng: Random) -> Function:
    number = rng.randint(1, 4)
    part, text = rng.choice(
        (
            (f"[:{number}]", f"first {number}"),
            (f"[-{number}:]", f"last {number}"),
            (f"[{number}:]", f"all but the first {number}"),
            (f"[:-{number}]", f"all but the last {number}"),
            ("[::2]", "every second"),
        )
    )
    if rng.random() < 0.5:
        order, flag = rng.choice((("ascending", ""), ("descending", ", reverse=True")))
        return _numbers(f"Sort {{a}} {order}, return {text} items.", f"return sorted({{a}}{flag}){part}")
    what, name = rng.choice((("sum", "sum"), ("largest", "max"), ("smallest", "min")))
    return _numbers(f"Return the {what} of {text} items of {{a}}.", f"return {name}({{a}}{part})")


def _string_step(rng: Random) -> tuple[str, str]:
    number = rng.randint(2, 5)
    old, new = rng.sample("aeiou", 2)
    return rng.choice(
        (
            ("in upper case", ".upper()"),
            ("in lower case", ".lower()"),
            ("reversed", "[::-1]"),
            ("without spaces", ".replace(' ', '')"),
            (f"cut to {number} characters", f"[:{number}]"),
            (f"with '{old}' replaced by '{new}'", f".replace('{old}', '{new}')"),
        )
    )


def _string(rng: Random) -> Function:
    (first, code), (second, more) = _string_step(rng), _string_step(rng)
    return _texts(f"Return {{a}} {first}, then {second}.", f"return {{a}}{code}{more}")


def _letters(rng: Random) -> Function:
    letters = "".join(sorted(rng.sample("abdeinorst", rng.randint(1, 3))))
    if rng.random() < 0.5:
        return _texts(
            f"Return how many characters of {{a}} are in '{letters}'.",
            f"return sum(1 for c in {{a}} if c in '{letters}')",
        )
    return _texts(
        f"Return {{a}} without the characters '{letters}'.",
        f"return ''.join(c for c in {{a}} if c not in '{letters}')",
    )


def _words(rng: Random) -> Function:
    number = rng.randint(2, 6)
    what, value = rng.choice(
        (
            ("words", "w"),
            ("upper case words", "w.upper()"),
            ("reversed words", "w[::-1]"),
            ("word lengths", "len(w)"),
            ("first letters of words", "w[0]"),
        )
    )
    which, test = rng.choice(
        (
            (f"longer than {number}", f"len(w) > {number}"),
            (f"shorter than {number}", f"len(w) < {number}"),
            (f"of length {number}", f"len(w) == {number}"),
        )
    )
    return _texts(
        f"Return a list of the {what} in {{a}}, only words {which}.",
        f"return [{value} for w in {{a}}.split() if {test}]",
    )


def _joined(rng: Random) -> Function:
    mark = rng.choice("-_+/:;")
    order, code = rng.choice(
        (("words", "{a}.split()"), ("sorted words", "sorted({a}.split())"), ("reversed words", "{a}.split()[::-1]"))
    )
    case, call = rng.choice((("", ""), (" in upper case", ".upper()"), (" in lower case", ".lower()")))
    return _texts(f"Join the {order} of {{a}} with '{mark}'{case}.", f"return '{mark}'.join({code}){call}")


def _formula(rng: Random) -> Function:
    first, second, third = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    sign, word = rng.choice((("+", "plus"), ("-", "minus")))
    kind = rng.choice(("linear", "squares", "product"))
    calls = ("3, 4", "10, -2", "0, 7")
    if kind == "linear":
        text, code = f"{first} times {{a}} {word} {second} times {{b}}", f"{first} * {{a}} {sign} {second} * {{b}}"
    elif kind == "squares":
        text, code = f"the square of {{a}} {word} {third} times {{b}}", f"{{a}} ** 2 {sign} {third} * {{b}}"
    else:
        text, code = f"the product of {{a}} and {{b}} {word} {third}", f"{{a}} * {{b}} {sign} {third}"
    return Function(f"Return {text}.", (f"return {code}",), calls, "two")


def _branch(rng: Random) -> Function:
    bound, factor, shift = rng.randint(2, 8), rng.randint(2, 9), rng.randint(1, 9)
    sign, word = rng.choice(((">", "greater"), ("<", "less")))
    return Function(
        f"If {{a}} is {word} than {bound} return {{a}} times {factor}, else {{a}} plus {shift}.",
        (f"if {{a}} {sign} {bound}:", f"    return {{a}} * {factor}", f"return {{a}} + {shift}"),
        (*_COUNTS, "20"),
        "count",
    )


def _range(rng: Random) -> Function:
    divisor = rng.randint(2, 9)
    what, value = _map(rng)
    if rng.random() < 0.5:
        return Function(
            f"Return a list with the {what} of 1 to {{a}}.",
            (f"return [{value} for x in range(1, {{a}} + 1)]",),
            ("3", "6", "12"),
            "count",
        )
    return Function(
        f"Return the sum of the {what} of 1 to {{a}} divisible by {divisor}.",
        (f"return sum({value} for x in range(1, {{a}} + 1) if x % {divisor} == 0)",),
        ("5", "12", "30"),
        "count",
    )


def _mapping(rng: Random) -> Function:
    number = rng.randint(2, 12)
    word, sign = rng.choice((("greater than", ">"), ("less than", "<"), ("equal to", "==")))
    text, code = rng.choice(
        (
            ("a list of the keys of {a} with a value", "[k for k, v in {a}.items() if v %s]"),
            ("the sum of the values of {a}", "sum(v for v in {a}.values() if v %s)"),
            ("how many values of {a} are", "sum(1 for v in {a}.values() if v %s)"),
            ("a dict of the items of {a} with a value", "{{k: v for k, v in {a}.items() if v %s}}"),
        )
    )
    calls = (
        "{'a': 1, 'b': 7, 'c': 12}",
        "{'x': 5, 'y': 2, 'z': 9, 'w': 3}",
        "{'p': 10, 'q': 4, 'r': 6, 's': 8, 't': 11}",
    )
    return Function(f"Return {text} {word} {number}.", ("return " + code % f"{sign} {number}",), calls, "mapping")


def _zip(rng: Random) -> Function:
    word, code = rng.choice(
        (("sums", "p + q"), ("products", "p * q"), ("differences", "p - q"), ("maxima", "max(p, q)"))
    )
    number = rng.randint(2, 9)
    outer, call = rng.choice(
        (("a list of", "[%s for p, q in zip({a}, {b})]"), ("the sum of", "sum(%s for p, q in zip({a}, {b}))"))
    )
    return Function(
        f"Return {outer} the pairwise {word} of {{a}} and {{b}}, each times {number}.",
        ("return " + call % (f"({code}) * {number}" if word in ("sums", "differences") else f"{code} * {number}"),),
        ("[1, 2, 3], [4, 5, 6]", "[9, -2], [3, 8]", "[0, 7, 5], [2, 2, 10]"),
        "pair",
    )


_MAKERS: dict[str, Callable[[Random], Function]] = {
    "list": _list,
    "total": _total,
    "count": _count,
    "extreme": _extreme,
    "quantifier": _quantifier,
    "loop": _loop,
    "slice": _slice,
    "string": _string,
    "letters": _letters,
    "words": _words,
    "joined": _joined,
    "formula": _formula,
    "branch": _branch,
    "range": _range,
    "mapping": _mapping,
    "zip": _zip,
}


def _kind(make: Callable[[Random], Function]) -> Kind:
    def draw(rng: Random, split: str) -> Draft:
        for _ in range(_DRAWS):
            function = make(rng)
            if split_of(function.text) == split:
                return _draft(function, rng)
        raise AssertionError(f"no function for {split}")

    return draw


def _draft(function: Function, rng: Random) -> Draft:
    name, parameters = rng.choice(_NAMES), rng.choice(_PARAMETERS[function.style])
    names = dict(zip("ab", parameters, strict=False))
    prompt = f'def {name}({", ".join(parameters)}):\n    """{function.text.format(**names)}"""\n'
    body = "\n".join(f"    {line.format(**names)}" for line in function.body)
    namespace: dict[str, Callable[..., object]] = {}
    exec(prompt + body, namespace)
    asserts = [f"assert {name}({call}) == {eval(f'{name}({call})', dict(namespace))!r}" for call in function.calls]
    return Draft(prompt, body, "\n".join(asserts))


KINDS: dict[str, Kind] = {name: _kind(make) for name, make in _MAKERS.items()}


def items(split: str, size: int | None = None) -> list[Item]:
    """Return the functions of one split."""
    return build("coding", split, KINDS, size)


def program(item: Item, answer: str) -> Program:
    """Return what decides an item: the function with the answer as its body, and the asserts that check it.

    The answer ends where the body ends: at the first line that is neither blank nor indented.
    """
    body = []
    for line in answer.splitlines():
        if line.strip() and not line[0].isspace():
            break
        body.append(line)
    name = item["prompt"].removeprefix("def ").partition("(")[0]
    text = "\n".join([item["prompt"].rstrip("\n"), *body, ""])
    return Program(text, check_of(item["check"], name))


def score_batch(items: Sequence[Item], answers: Sequence[str]) -> list[float]:
    """Run every item's program in the sandbox, several at once; 1.0 where all asserts hold."""
    programs = [program(item, answer) for item, answer in zip(items, answers, strict=True)]
    return [float(result.passed) for result in run_programs(programs)]


def score(item: Item, answer: str) -> float:
    """Return 1.0 if the completed function passes its asserts in the sandbox."""
    return score_batch([item], [answer])[0]
