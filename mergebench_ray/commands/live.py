"""The view of a run that is under way: a live panel on a terminal, plain lines where output is piped."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mergebench_ray import interrupts
from mergebench_ray.commands.looking import Display, in_notebook, is_seen
from mergebench_ray.markup import terminal_text
from mergebench_ray.runs.leaderboard import MISSING, objective_title, what_is_missed, with_error, with_objective
from mergebench_ray.runs.trials import Trial

_NOTEBOOK_WIDTH = 110  # characters
_NOTES_SHOWN = 10
_SECONDS = 5.0  # between lines about the same work


class LiveView:
    """Shows what a search is doing; used as a context manager, so that the terminal is whole again however it ends.

    On a terminal, finished trials scroll by as lines above a panel with the phase, the progress and the best so far,
    and whatever else is printed meanwhile stays above the panel too. Piped, there are only the lines, one for each
    phase and finished trial. In a notebook the panel is one output, which changes.

    Args:
        name: name of the run.
        total: candidates that the search will score; None where that is not known.
        show: whether to show anything; None for where somebody looks.
        console: where to print; None for standard output.
    """

    def __init__(
        self, name: str, total: int | None, *, show: bool | None = True, console: Console | None = None
    ) -> None:
        self._name = name
        self._total, self._of = total, "of"
        self._console = console or Console()
        self._show = is_seen(show, self._console)
        self._display: Display | None = None
        self._notes: list[str] = []
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._begun = time.monotonic()
        self._phase = ""
        self._line_time = -math.inf
        self._done = 0
        self._last: Trial | None = None
        self._best: Trial | None = None
        self._search_begun: float | None = None
        self._finished_here = 0

    def __enter__(self) -> LiveView:
        if self._show and in_notebook():
            self._display = Display()
        elif self._show and self._console.is_terminal:
            interrupts.clean_up_first()  # the terminal
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._display is not None:
            self._display.flush()

    def phase(self, text: str) -> None:
        """Say what happens now, such as "starting vLLM (about 30 s)"."""
        if text != self._phase:
            # Of the numbers behind a colon every few seconds' are enough.
            same_work = text.partition(":")[0] == self._phase.partition(":")[0] and ":" in text
            self._phase = text
            self._refresh()
            if self._live is None and not (same_work and time.monotonic() < self._line_time + _SECONDS):
                self._line(text)
                self._line_time = time.monotonic()

    def note(self, text: str) -> None:
        """Say something that stays on the terminal."""
        self._notes.append(f"note: {text}")
        self._refresh()
        self._line(f"note: {text}")

    def search_begins(self, done: int, about: int | None = None) -> None:
        """The search begins, or goes on.

        Args:
            done: candidates that are at their end.
            about: how many there will be, where a budget says it and that is known; None for the view's total.
        """
        self._search_begun, self._done = time.monotonic(), done
        if about is not None:
            self._total, self._of = about, "of about"

    def trial_started(self, number: int) -> None:
        """A candidate, counted from 0, is being merged and scored; one that nobody expected makes the total larger."""
        if self._total is not None:
            self._total = max(self._total, number + 1)
        self._phase = f"scoring candidate {self._out_of(number + 1)}"
        self._refresh()

    def trial_finished(self, trial: Trial, best: Trial | None) -> None:
        """A candidate was scored, or stopped by the race; `best` is the best one so far."""
        self._done += 1
        self._finished_here += 1
        self._last, self._best = trial, best
        self._refresh()
        scores = "  ".join(f"{domain} {result.score:.3f}" for domain, result in sorted(trial.domains.items()))
        count = f"{self._done}/{self._total}" if self._total is not None and self._of == "of" else f"{self._done}"
        parts = [
            f"{count}  {trial.label}",
            _reached(trial),
            what_is_missed(trial),
            scores,
            f"{trial.merge_seconds + trial.load_seconds + trial.score_seconds:.1f} s",
            _speed(trial),
            f"best {with_error(best.objective.value, None)} ({best.label})" if best else "",
            self._time_left(),
        ]
        self._line(" | ".join(part for part in parts if part))

    def finished(self, lines: Sequence[str]) -> None:
        """Print what the run found and take the panel away."""
        self.__exit__(None, None, None)
        if self._display is not None:
            self._display.show_lines([*self._notes, *lines], last=True)
        for line in lines:
            self._line(line, timed=False)

    def _line(self, text: str, *, timed: bool = True) -> None:
        if self._show and self._display is None:
            stamp = (f"{_clock(time.monotonic() - self._begun)}  ", "dim") if timed else ""
            self._console.print(Text.assemble(stamp, terminal_text(text)), highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        if self._display is not None:
            drawn = Console(record=True, file=io.StringIO(), width=_NOTEBOOK_WIDTH, force_jupyter=False)
            drawn.print(self._panel(), *map(terminal_text, self._notes[-_NOTES_SHOWN:]), sep="\n", soft_wrap=True)
            self._display.show(drawn.export_html(inline_styles=True, code_format="<pre>{code}</pre>"))

    def _out_of(self, count: int) -> str:
        return f"{count}" if self._total is None else f"{count} {self._of} {self._total}"

    def _time_left(self) -> str:
        left = 0 if self._total is None else self._total - self._done
        if self._search_begun is None or self._finished_here == 0 or left <= 0:
            return ""
        seconds = (time.monotonic() - self._search_begun) / self._finished_here * left
        return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"

    def _panel(self) -> RenderableType:
        """Phase, progress, best so far, and the domain scores of the last and the best candidate."""
        clock = _clock(time.monotonic() - self._begun)
        name, phase = terminal_text(self._name), terminal_text(self._phase)
        name.stylize("bold")
        self._spinner.update(text=Text.assemble(name, f"  {clock}  ", phase))
        if self._last is None:
            return self._spinner
        bar = Table.grid(padding=(0, 2))
        progress = [f"{self._out_of(self._done)} candidates", _speed(self._last), self._time_left()]
        bar.add_row(
            ProgressBar(total=self._total, completed=self._done, width=30),
            ", ".join(part for part in progress if part),
        )
        return Group(self._spinner, bar, self._scores())

    def _scores(self) -> Table:
        domains = sorted({*(self._last.domains if self._last else ()), *(self._best.domains if self._best else ())})
        table = Table(box=None, padding=(0, 2), header_style="dim")
        shown = self._last or self._best
        title = objective_title(shown.objective_name, domains) if shown else ""
        for header in ("", "candidate", title, *domains):
            table.add_column(terminal_text(header), justify="left" if header in ("", "candidate") else "right")
        for title, trial in (("best so far", self._best), ("last", self._last)):
            if trial is not None:
                results = [trial.domains.get(domain) for domain in domains]
                table.add_row(
                    title,
                    terminal_text(", ".join(filter(None, (trial.label, what_is_missed(trial))))),
                    _reached(trial),
                    *(f"{result.score:.3f}" if result else MISSING for result in results),
                    style="bold green" if title == "best so far" else None,
                )
        return table


def _reached(trial: Trial) -> str:
    """The objective, or at how many items the race stopped the candidate, and what it would probably have come to."""
    if trial.estimate is None:
        return with_objective(trial)
    about = with_error(trial.estimate.value, trial.estimate.standard_error)
    return trial.stopped_after if trial.failure else f"{trial.stopped_after}, about {about}"


def _speed(trial: Trial) -> str:
    if trial.score_seconds > 0:
        return f"{trial.tokens / trial.score_seconds:.0f} tokens/s"
    return f"scored before in {', '.join(trial.reused_from)}" if trial.reused_from else "scored before"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
