"""Running the command line inside the test's process, as a user would from a shell."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import pytest
import typer.main

from mergebench_ray import cli

# Typer makes all commands anew from their functions each time it is called.
_made = functools.cache(typer.main.get_command)


@dataclass(frozen=True)
class Finished:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


class CommandLine:
    """Runs `mergebench-ray ARGUMENTS`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> Finished:
        self._monkeypatch.setattr(sys, "argv", ["mergebench-ray", *map(str, arguments)])
        self._monkeypatch.setattr(typer.main, "get_command", _made)
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self._capsys.readouterr()
        return Finished(int(ended.value.code or 0), captured.out, captured.err)

    def refused(self, *arguments: object) -> str:
        """Run a command that must be refused: exit 2, one line besides progress; returns that line."""
        finished = self(*arguments)
        assert finished.status == 2, finished
        lines = [line for line in finished.err.splitlines() if not line.startswith("loading the bank")]
        assert len(lines) == 1, finished.err
        assert lines[0].startswith("error: "), lines[0]
        assert finished.out == ""
        return lines[0]
