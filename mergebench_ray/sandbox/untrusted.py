"""A program as its check sees it: functions that are called over a pair of pipes, and the replies to that.

Imported by the sandbox's own small interpreter: standard library and neighbours only.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from typing import Any

from . import values

_REPLY_BYTES = 2**24
_PART_BYTES = 2**16
_MESSAGE_CHARACTERS = 200
_ENDS = (StopIteration, StopAsyncIteration)


class ProgramEnded(BaseException):
    """The program's process stopped answering. No `Exception`, so that no check can take it for one of its own."""


class Channel:
    """Lines over a pair of pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, text: str) -> None:
        """Send one line."""
        data = memoryview(text.encode() + b"\n")
        while data:
            data = data[os.write(self._outgoing, data) :]

    def lines(self) -> Iterator[bytes]:
        """The lines of the other side, until it closes its end or sends one that is too long."""
        parts: list[bytes] = []
        size = 0
        while (part := os.read(self._incoming, _PART_BYTES)) and size < _REPLY_BYTES:
            *complete, rest = part.split(b"\n")
            for end in complete:
                yield b"".join([*parts, end])
                parts, size = [], 0
            parts.append(rest)
            size += len(rest)


class Untrusted:
    """The program as the check sees it: each attribute is one of its functions, called in the program's process.

    Arguments and results go by value. An error of a built-in class arrives as that class.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._replies = channel.lines()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            request = values.to_json((name, args, kwargs))
            try:
                self._channel.send(request)
            except BrokenPipeError:
                raise ProgramEnded from None
            return self._result()

        return call

    def _result(self) -> Any:
        reply = next(self._replies, None)
        if reply is None:
            raise ProgramEnded
        try:
            kind, content = values.from_json(reply)
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
            raise ProgramEnded from None
        if kind == "raised":
            name, message = content
            error = getattr(builtins, str(name), None)
            # The end of an iteration would end one of the check's own, such as `map`, before its asserts.
            if isinstance(error, type) and issubclass(error, Exception) and not issubclass(error, _ENDS):
                raise error(message)
            raise RuntimeError(f"{name}: {message}")
        return content


def returned(result: object) -> str:
    """The reply that carries a function's result."""
    try:
        return values.to_json(("returned", result))
    except TypeError:
        return f'{{"tuple": ["returned", {values.other_to_json(result)}]}}'


def raised(error: BaseException) -> str:
    """The reply that carries an error."""
    return values.to_json(("raised", (type(error).__name__, describe(error).partition(": ")[2])))


def describe(error: BaseException) -> str:
    """An error in one short line, even if its class fails to say."""
    name = type(error).__name__
    try:
        text = f"{name}: {error}".split("\n")[0]
    except Exception:
        text = name
    return text[:_MESSAGE_CHARACTERS]
