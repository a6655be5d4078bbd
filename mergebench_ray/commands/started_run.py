"""A search in the background: the command in a process of its own, and a handle that reads the run's folder."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Generic, ParamSpec, TypeVar

from mergebench_ray.commands.first_checks import checked_run
from mergebench_ray.commands.looking import shown_while_waiting
from mergebench_ray.commands.opened_run import OpenedRun
from mergebench_ray.commands.tune_result import TuneResult
from mergebench_ray.config import Sweep
from mergebench_ray.errors import InputError, StoppedError
from mergebench_ray.runs.spending import Worked
from mergebench_ray.runs.status import RunStatus

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

_WRONG_INPUT = 2
_WITH_ERROR = (1, _WRONG_INPUT)
_ERROR = "error: "
_NOT_BEGUN = "it had not begun: start it again"
_STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_SECONDS = 0.5  # between looks at whether the command has ended


class StartedRun(OpenedRun):
    """A search that goes on in the background. Made by `tune.start`.

    It goes on when this process ends, too; `open_run` finds it again.

    Args:
        folder: the run's.
        process: the command.
        output: file of what it prints.

    Attributes:
        folder: the same, absolute.
        pid: of the command's process.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        super().__init__(folder)
        self._process, self._output = process, output
        self.pid = process.pid

    @property
    def is_running(self) -> bool:
        """Whether the command is at work."""
        return self._process.poll() is None

    @property
    def status(self) -> RunStatus:
        """How it is getting on; of one that failed, the next step is its error."""
        running = self.is_running
        has_folder = self._paths.sweep_file.is_file()
        found = super().status if has_folder else _begun(self.folder)
        if running:
            return replace(found, state="under way")
        if has_folder and not self._error():
            return found
        return replace(found, state="stopped", next_step=self._error() or _NOT_BEGUN)

    @property
    def log(self) -> str:
        """What the command has printed."""
        descriptor = self._output.fileno()
        # Not by reading, which would move where the command writes next.
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def stop(self) -> None:
        """End the search as Ctrl-C does, and wait until it has: what is finished is kept, and `resume` goes on."""
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def wait(self, timeout: float | None = None, *, show_progress: bool | None = None) -> TuneResult:
        """Wait for the end of the search, which goes on if this is interrupted.

        Args:
            timeout: seconds; None for as long as it takes.
            show_progress: show how it is getting on; None where somebody looks, on a terminal and in a notebook.

        Raises:
            TimeoutError: it is not over by then.
            InputError: the search found that its input was wrong.
            StoppedError: it was stopped, or failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with shown_while_waiting(self, show_progress) as show:
            while self.is_running:
                left = _SECONDS if deadline is None else min(_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    raise TimeoutError(f"{self.folder}: the search is not over after {timeout:g} s")
                try:
                    self._process.wait(left)
                except subprocess.TimeoutExpired:
                    show()
        if self._process.returncode == 0:
            return TuneResult(self.folder)
        error = self._error()
        if error and self._process.returncode == _WRONG_INPUT:
            raise InputError(error)
        if error:
            raise StoppedError(error)
        if self._process.returncode in _STOPPED:
            has_folder = self._paths.sweep_file.is_file()
            remedy = "go on with tune.start(..., resume=True)" if has_folder else _NOT_BEGUN
            raise StoppedError(f"{self.folder}: the search was stopped; {remedy}")
        raise StoppedError(f"{self.folder}: the search failed (exit status {self._process.returncode}); see its log")

    def _error(self) -> str:
        """The line with which the command ended; empty where it ended without."""
        if self._process.poll() not in _WITH_ERROR:
            return ""  # a line that begins so was a library's
        lines = self.log.splitlines()
        return next((line.removeprefix(_ERROR) for line in reversed(lines) if line.startswith(_ERROR)), "")


def start(
    sweep: Path | str | Sweep,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    address: str | None = None,
    dashboard_port: int | None = None,
) -> StartedRun:
    """Begin a search in the background.

    It runs as `mergebench-ray tune` in a process of its own, which an interrupt of this one does not reach.

    Args:
        sweep: a sweep, or the path of its file.
        out: the run's folder; None for runs/NAME.
        resume: go on with the run in `out`.
        overrides: dotted keys of the file and the values to use instead.
        address: Ray cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        dashboard_port: show Ray's dashboard on this loopback port.

    Raises:
        InputError: wrong input that can be seen before models are looked at; `wait` raises what is found later.
    """
    checked, folder = checked_run(sweep, overrides, out, resume=resume, address=address, dashboard_port=dashboard_port)
    options = {"--out": folder, "--address": address, "--dashboard-port": dashboard_port}
    given = [f"{option}={value}" for option, value in options.items() if value is not None]
    command = [sys.executable, "-m", "mergebench_ray", "tune", "-", *given, *(["--resume"] if resume else [])]
    output = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as somebody may read it)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:  # one that has ended says why
        process.stdin.write(checked.to_yaml().encode())
    return StartedRun(folder, process, output)


def _begun(folder: Path) -> RunStatus:
    """Of a command that has not made its folder yet."""
    return RunStatus(
        name=folder.name,
        folder=str(folder),
        state="under way",
        since=None,
        last_row=None,
        candidates={},
        most=None,
        best="",
        on_test="",
        tokens=0,
        worked=Worked(),
        next_step="it looks at its models",
    )


class Startable(Generic[P, ResultT]):
    """A command that may also be begun in the background.

    Args:
        command: what calling it does.
    """

    def __init__(self, command: Callable[P, ResultT]) -> None:
        functools.update_wrapper(self, command)
        self._command = command

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> ResultT:
        """Run it here, and wait for its end."""
        return self._command(*arguments, **options)

    start = staticmethod(start)
