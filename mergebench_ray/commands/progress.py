"""One line of progress for commands without a live view of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from mergebench_ray import interrupts
from mergebench_ray.markup import terminal_text
from mergebench_ray.progress import Progress, silent


@contextmanager
def progress_line(show: bool) -> Iterator[Progress]:
    """Yield a function that takes (fraction done, what is happening).

    On a terminal it moves a bar on standard error; piped, it prints a line whenever what is happening changes.
    """
    console = Console(stderr=True)
    if not show:
        yield silent
    elif console.is_terminal:
        interrupts.clean_up_first()  # the terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with bars.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda fraction, text: bar.update(task, completed=fraction, description=escape(text))
    else:
        last = ""

        def say(_fraction: float, text: str) -> None:
            nonlocal last
            if text != last:
                console.print(terminal_text(text), highlight=False, soft_wrap=True)
                last = text

        yield say
