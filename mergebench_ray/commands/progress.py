"""One line of progress for commands without a live view of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mergebench_ray import interrupts
from mergebench_ray.markup import terminal_text

Report = Callable[[float, str], None]


@contextmanager
def progress_line(show: bool) -> Iterator[Report]:
    """Yield a function that takes (fraction done, what is happening).

    On a terminal it moves a bar on standard error; piped, it prints a line whenever what is happening changes.
    """
    console = Console(stderr=True)
    if not show:
        yield lambda _fraction, _text: None
    elif console.is_terminal:
        interrupts.clean_up_first()  # the terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("starting", total=1.0)
            yield lambda fraction, text: progress.update(task, completed=fraction, description=escape(text))
    else:
        last = ""

        def say(_fraction: float, text: str) -> None:
            nonlocal last
            if text != last:
                console.print(terminal_text(text), highlight=False, soft_wrap=True)
                last = text

        yield say
