"""Whether somebody looks at what a command says, and how it is shown in a notebook."""

from __future__ import annotations

import html
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console

from mergebench_ray.markup import terminal_text

_SECONDS = 0.25
"""Between two changes of what a notebook shows: more would only make its browser work."""


class Display:
    """A place in a notebook's output whose content changes; may be used from any thread."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = self._latest = ""
        self._time = -_SECONDS
        self._later: threading.Timer | None = None
        self._lock = threading.RLock()

    def show(self, markup: str, *, last: bool = False) -> None:
        """Show this instead of what was shown before; at once, or where that was a moment ago, in a moment.

        Args:
            markup: HTML.
            last: show it at once in any case.
        """
        with self._lock:
            self._latest = markup
            left = self._time + _SECONDS - time.monotonic()
            if last or left <= 0:
                self.flush()
            elif self._later is None:
                self._later = threading.Timer(left, self.flush)
                self._later.daemon = True
                self._later.start()

    def flush(self) -> None:
        """Show what came last."""
        with self._lock:
            if self._later is not None:
                self._later.cancel()
                self._later = None
            if self._latest == self._shown:
                return
            self._shown, self._time = self._latest, time.monotonic()
            display = importlib.import_module("IPython.display")  # no package of ours asks for it
            content = display.HTML(self._shown)
            if self._handle is None:
                self._handle = display.display(content, display_id=True)
            else:
                self._handle.update(content)

    def show_lines(self, lines: list[str], *, last: bool = False) -> None:
        """Show lines of text."""
        self.show(f"<pre>{html.escape(chr(10).join(lines))}</pre>", last=last)


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def is_seen(show: bool | None, console: Console) -> bool:
    """Whether to show how work is getting on; None is for where somebody looks: on a terminal and in a notebook."""
    return console.is_terminal or in_notebook() if show is None else show


class Shown(Protocol):
    """What can be shown while it is waited for."""

    @property
    def log(self) -> str:
        """What it has said so far."""

    def _repr_html_(self) -> str: ...


@contextmanager
def shown_while_waiting(run: Shown, show: bool | None) -> Iterator[Callable[[], None]]:
    """Yield a function to be called now and then: it shows a run's table in a notebook, and its new lines elsewhere."""
    console = Console()
    if not is_seen(show, console):
        yield lambda: None
        return
    if in_notebook():
        display = Display()
        yield lambda: display.show(run._repr_html_())
        display.show(run._repr_html_(), last=True)
        return
    said = 0

    def print_new() -> None:
        nonlocal said
        new = run.log[said:]
        new = new[: new.rfind("\n") + 1]
        if new:
            said += len(new)
            console.print(terminal_text(new), end="", highlight=False, soft_wrap=True)

    yield print_new
    print_new()
