"""The one error that means: the input was wrong, nothing was started, here is what to do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_MAX_CHARACTERS = 1500
_MAX_WORD = 300
_MAX_NAMES = 20
_MAX_REASON = 300
_CREDENTIALS = re.compile(r"(?<=:/)(/?).*@|\?.*", re.DOTALL)


class InputError(ValueError):
    """Input that a user can mend.

    The message is a single line that says what is wrong, where (file, key), and what to do about it. The command
    line prints it without a traceback and exits with status 2. What a message quotes may be anything: characters that a
    terminal would obey are escaped, and the middle of a very long word, such as a reference, and of a very long message
    is left out.
    """

    def __init__(self, message: str) -> None:
        words = printable(" ".join(str(message).split())).split(" ")
        super().__init__(_shortened(" ".join(_shortened(word, _MAX_WORD) for word in words), _MAX_CHARACTERS))


class StoppedError(RuntimeError):
    """What no input can mend has ended a command, such as machines that are gone.

    The message is a single line that says what, and how to go on. The command line prints it without a traceback and
    exits with status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shortened(printable(" ".join(str(message).split())), _MAX_CHARACTERS))


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def printable(text: str) -> str:
    """Text with everything escaped that a terminal or a page would obey instead of showing it, line breaks too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_credentials(address: str) -> str:
    """An address of any kind as messages show it: without user, password and options, which may be a signature."""
    return _CREDENTIALS.sub(r"\1***", address)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are closest to one that is not known, or some of all, as the hint that ends an error."""
    names = sorted(map(str, known))
    if not names:
        return "there are none"
    if close := get_close_matches(name, names, n=3):
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(names[:_MAX_NAMES])}{', ...' if len(names) > _MAX_NAMES else ''}"


def one_line(error: BaseException) -> str:
    """Type and text of any library's error, as the part of a message that says why."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no reason given'}"[:_MAX_REASON]


@contextmanager
def about(what: str) -> Iterator[None]:
    """Put in front of an `InputError` of the block what it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


@contextmanager
def refusing(problem: str, remedy: str, log: logging.Logger | None = None) -> Iterator[None]:
    """Turn whatever a library raises in the block into one line: the problem, the library's reason, what to do.

    Args:
        problem: what failed, and where.
        remedy: what to do.
        log: gets the traceback.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if log is not None:
            log.exception(problem)
        raise InputError(f"{problem} ({one_line(error)}); {remedy}") from error
