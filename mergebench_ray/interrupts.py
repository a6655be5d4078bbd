"""Ctrl-C, SIGTERM and SIGHUP end a command alike: one line, what is finished is kept, exit status 128 + signal.

`install` comes before every slow import, so this module imports nothing that is slow itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.1


class _State:
    """Of this process; signals are the process's, too."""

    installed = False
    must_clean_up = False
    received = 0
    number: int = signal.SIGINT  # the signal that asked this process to end first


def install() -> None:
    """From now on the signals end this process; those that it was started to ignore, as by `nohup`, stay ignored.

    As long as nothing must be cleaned up (`clean_up_first`), the process ends on the spot: an exception raised in the
    middle of an import may be swallowed or turned into another one. Later a signal raises KeyboardInterrupt, the second
    one only says that the first is being followed, and the third ends the process without cleaning up.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _State.installed = True
    sys.unraisablehook = _unraisable
    sys.excepthook = _excepted
    _take_signals()


def clean_up_first() -> None:
    """Say that from now on there is something to clean up before the process may end."""
    _State.must_clean_up = True


def leave() -> None:
    """Say that everything is cleaned up: a signal need not wait for what the interpreter does at its end."""
    _State.must_clean_up = False


def received() -> bool:
    """Whether a signal asked this process to end."""
    return _State.received > 0


def status() -> int:
    """Exit status of a process that a signal ended, as shells count them: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _State.number


@contextmanager
def kept() -> Iterator[None]:
    """Let no library put handlers of its own in the place of these in the block, and put these back at its end.

    Ray does both: a handler in Python when it begins to start, and one below Python that prints stacks and aborts.
    """
    if not _State.installed:
        yield
        return
    put = signal.signal

    def put_others(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in _SIGNALS else put(number, handler)

    setattr(signal, "signal", put_others)  # noqa: B010
    try:
        yield
    finally:
        setattr(signal, "signal", put)  # noqa: B010
        _take_signals()


def _take_signals() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    _State.received += 1
    if _State.received == 1:
        _State.number = number
    if not _State.must_clean_up:
        _end()
    if _State.received == 1:
        raise KeyboardInterrupt
    if _State.received > 2:
        _end()
    _say("stopping; once more ends at once and leaves unfinished files behind")


def _end() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    _say("stopped")
    os._exit(status())


def _say(line: str) -> None:
    # Not through sys.stderr, which may be in the middle of a write; a closed terminal takes nothing any more.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _excepted(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print what nobody caught, but no interrupt: where Cython cannot raise, one comes here before `_unraisable`."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Send an interrupt again that came where no exception can be raised, as in a destructor; print all others."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    _State.received = 0
    timer = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (threading.main_thread().ident, _State.number))
    timer.daemon = True
    timer.start()
