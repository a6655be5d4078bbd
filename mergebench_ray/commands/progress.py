"""One line of progress for commands without a live view of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from mergebench_ray import interrupts
from mergebench_ray.commands.looking import Display, in_notebook, is_seen
from mergebench_ray.markup import terminal_text
from mergebench_ray.progress import Progress, silent

_SECONDS = 5.0  # between lines about the same work


@contextmanager
def progress_line(show: bool | None) -> Iterator[Progress]:
    """Yield a function that takes (fraction done, what is happening).

    On a terminal it moves a bar on standard error, in a notebook a line changes; piped, it prints a line whenever what
    is happening changes, and every few seconds how far it is.

    Args:
        show: whether to; None for where somebody looks.
    """
    console = Console(stderr=True)
    if not is_seen(show, console):
        yield silent
    elif in_notebook():
        display = Display()
        yield lambda _fraction, text: display.show_lines([text])
        display.show("", last=True)
    elif console.is_terminal:
        interrupts.clean_up_first()  # the terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with bars.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda fraction, text: bar.update(task, completed=fraction, description=escape(text))
    else:
        last, last_time = "", -math.inf

        def say(_fraction: float, text: str) -> None:
            nonlocal last, last_time
            # Of the numbers behind a colon every few seconds' are enough.
            same_work = text.partition(":")[0] == last.partition(":")[0] and time.monotonic() < last_time + _SECONDS
            if text != last and not same_work:
                console.print(terminal_text(text), highlight=False, soft_wrap=True)
                last, last_time = text, time.monotonic()

        yield say
