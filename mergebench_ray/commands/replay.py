"""What racing, or fewer items, would have cost and chosen in a run that is over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mergebench_ray.commands.progress import progress_line
from mergebench_ray.errors import InputError
from mergebench_ray.markup import terminal_text
from mergebench_ray.report.own_output import check_outputs, write_output
from mergebench_ray.search.replay.page import fresh_words, replay_page
from mergebench_ray.search.replay.recorded import Recorded
from mergebench_ray.search.replay.replay import ReplayResult, replay_run
from mergebench_ray.search.replay.settings import DEFAULT_SETTINGS, Setting

_MOST_ORDERS = 100_000
_LEAST_OF_A_TASK = 6  # of which a third is held back
_MOST_ITEMS = 100_000


def replay(
    run: Path | str,
    *,
    races: Sequence[str] | None = None,
    orders: int = 200,
    seed: int = 0,
    items: int | None = None,
    out: Path | str | None = None,
    show_progress: bool | None = None,
) -> ReplayResult:
    """Race the candidates of a finished run again, from their stored item scores; nothing is loaded or scored.

    Args:
        run: the run's folder.
        races: settings, each as ``KIND`` or ``KIND,KEY=VALUE,...``, such as ``pool,p=0.05``; None for a selection.
        orders: seeded orders of candidates and items that each setting is tried on.
        seed: fixes them.
        items: as if there were so many items, drawn with replacement; None for those of the run.
        out: file for a page with a picture and a table; None for none.
        show_progress: say what is happening; None where somebody looks, on a terminal and in a notebook.

    Raises:
        InputError: the run has no items, fewer than two candidates, candidates scored on different items or a metric
            that exists only over all items; a setting is wrong; the page cannot be written.
    """
    for option, value, most in (("--orders", orders, _MOST_ORDERS), ("--items", items, _MOST_ITEMS)):
        if value is not None and not 1 <= value <= most:
            raise InputError(f"{option} {value}: must be from 1 to {most}")
    if seed < 0:
        raise InputError(f"--seed {seed}: must be 0 or more")
    settings = DEFAULT_SETTINGS if races is None else [Setting.parse(text) for text in races]
    if not settings:
        raise InputError("races: name at least one, such as pool")
    folder = Path(run)
    if out is not None:
        check_outputs({"out": Path(out)}, [folder])
    recorded = Recorded.read(folder)
    least = _LEAST_OF_A_TASK * len(recorded.validation.items.domain_of_task)
    if items is not None and items < least:
        raise InputError(f"--items {items}: must be at least {least} for the run's tasks, {_LEAST_OF_A_TASK} for each")
    with progress_line(show_progress) as progress:
        result = replay_run(
            str(folder), recorded, settings, orders=orders, seed=seed, resample=items, progress=progress
        )
    if out is not None:
        write_output(Path(out), replay_page(result), "out")
    return result


def replay_table(result: ReplayResult) -> Table:
    """What a replay found, narrow enough for 80 columns."""
    caption = (
        f"{len(result.candidates)} candidates, {result.items} items each, {result.orders} orders; loss on fresh items: "
        f"{fresh_words(result)}"
    )
    table = Table(caption=terminal_text(caption), caption_justify="left")
    table.add_column("setting", overflow="fold")
    for column in ("items asked", "regret", "95 %", "fresh loss", "mostly chosen"):
        table.add_column(column, justify="right")
    for one in result.outcomes:
        number, share = one.chosen[0]
        numbers = (f"{loss:.4f}" for loss in (one.regret, one.regret_95, one.fresh_loss))
        cells = (one.setting, f"{one.items_asked:.1%}", *numbers, f"{number} ({share:.0%})")
        table.add_row(*map(terminal_text, cells))
    return table
