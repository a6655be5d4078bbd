"""Progress of a training run: a live bar on a terminal, plain lines when piped."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_EVERY = 10


class TrainingProgress:
    """Reports steps and losses; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._name = ""
        self._done = self._first = self._total = 0
        self._started = 0.0
        self._losses: list[float] = []

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def start(self, name: str, num_steps: int, first: int) -> None:
        """Begin a new row of `num_steps`, of which `first` are done already."""
        self._name, self._total, self._done, self._first = name, num_steps, first, first
        self._started, self._losses = time.monotonic(), []
        self._task = self._bar.add_task(name, total=num_steps, completed=first, loss=float("nan"))
        if first:
            self.note(f"{name}: going on after step {first}")

    def step(self, loss: float) -> None:
        """Count one step."""
        self._done += 1
        self._losses.append(loss)
        recent = sum(self._losses[-_LINE_EVERY:]) / len(self._losses[-_LINE_EVERY:])
        self._bar.update(self._task, advance=1, loss=recent)
        if not self._console.is_terminal and (self._done % _LINE_EVERY == 0 or self._done == self._total):
            seconds = time.monotonic() - self._started
            left = seconds / (self._done - self._first) * (self._total - self._done)
            self.note(f"{self._name}: step {self._done}/{self._total}, loss {recent:.3f}, {left:.0f} s left")
