"""Constraints on an answer that code can verify, by name: each takes the stripped answer and its own arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

Constraint = tuple[str, Sequence[object]]
"""Name of a check below, and its arguments."""

_MARKS = " .,!?;:\"'"


def _words(text: str) -> list[str]:
    return [word for word in (part.strip(_MARKS) for part in text.split()) if word]


def _parts(text: str) -> list[str]:
    return [part.strip(_MARKS) for part in text.split(",")]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _one_line(text: str) -> bool:
    return len(_lines(text)) == 1


def _sentence(text: str) -> bool:
    return _one_line(text) and len(_words(text)) >= 3


def _word_count(text: str, count: int) -> bool:
    return len(_words(text)) == count


def _lower(text: str) -> bool:
    return text == text.lower()


def _upper(text: str) -> bool:
    return text == text.upper()


def _starts(text: str, word: str) -> bool:
    words = _words(text)
    return bool(words) and words[0].lower() == word.lower()


def _ends(text: str, word: str) -> bool:
    words = _words(text)
    return bool(words) and words[-1].lower() == word.lower()


def _includes(text: str, *needed: str) -> bool:
    words = {word.lower() for word in _words(text)}
    return all(word.lower() in words for word in needed)


def _without(text: str, letter: str) -> bool:
    return letter not in text.lower()


def _repeated(text: str, word: str, count: int) -> bool:
    return text.lower().split() == [word] * count


def _items(text: str, count: int) -> bool:
    parts = _parts(text)
    return len(set(parts)) == len(parts) == count and all(1 <= len(part.split()) <= 3 for part in parts)


def _numbered(text: str, count: int) -> bool:
    lines = _lines(text)
    return len(lines) == count and all(
        re.match(rf"{number}\. \S", line) is not None for number, line in enumerate(lines, start=1)
    )


def _bullets(text: str, count: int) -> bool:
    lines = _lines(text)
    return len(lines) == count and all(re.match(r"\* \S", line) is not None for line in lines)


def _json_keys(text: str, *keys: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def _wrapped(text: str, left: str, right: str) -> bool:
    inner = text[len(left) : len(text) - len(right)]
    return text.startswith(left) and text.endswith(right) and bool(inner.strip()) and left not in inner


def _final(text: str, mark: str) -> bool:
    return text.endswith(mark) and text.count(mark) == 1


def _exactly(text: str, *words: str) -> bool:
    return [part.lower() for part in _parts(text)] == list(words)


def _one_of(text: str, *words: str) -> bool:
    return text.lower() in words


CHECKS: dict[str, Callable[..., bool]] = {
    "one_line": _one_line,
    "sentence": _sentence,
    "word_count": _word_count,
    "lower": _lower,
    "upper": _upper,
    "starts": _starts,
    "ends": _ends,
    "includes": _includes,
    "without": _without,
    "repeated": _repeated,
    "items": _items,
    "numbered": _numbered,
    "bullets": _bullets,
    "json_keys": _json_keys,
    "wrapped": _wrapped,
    "final": _final,
    "exactly": _exactly,
    "one_of": _one_of,
}


def holds(answer: str, constraints: Sequence[Constraint]) -> bool:
    """Return whether a non-empty answer keeps every constraint."""
    text = answer.strip()
    return bool(text) and all(CHECKS[name](text, *arguments) for name, arguments in constraints)
