"""What the weights of specialists say about a merge before any is made: sizes, angles, signs, and where to begin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from mergebench_ray.bank import StreamedBank
from mergebench_ray.commands.advice import Advice, Group
from mergebench_ray.commands.advice_page import advice_page
from mergebench_ray.commands.models import resolve_models
from mergebench_ray.commands.progress import progress_line
from mergebench_ray.errors import InputError
from mergebench_ray.families import ModelFamily
from mergebench_ray.kernels import BlockFunction
from mergebench_ray.markup import terminal_text
from mergebench_ray.methods import sum_of
from mergebench_ray.report.own_output import check_outputs, write_output
from mergebench_ray.search.starts import kappa, metagpt

if TYPE_CHECKING:
    from torch import Tensor

    from mergebench_ray.kernels import Block

BESIDE = "beside the layers"
_APART, _ALIKE = -0.1, 0.5  # cosines that are worth a sentence
_LARGER = 4.0  # times as large as another, likewise


def advise(
    base: Path | str,
    specialists: Mapping[str, Path | str],
    *,
    allow: Collection[str] = (),
    out: Path | str | None = None,
    show_progress: bool | None = None,
) -> Advice:
    """Read base and specialists and say how they lie to each other; nothing is merged or scored.

    Args:
        base: reference of the base.
        specialists: name -> reference.
        allow: as `merge` takes it.
        out: file for a page with pictures; None for none.
        show_progress: say what is happening; None where somebody looks, on a terminal and in a notebook.

    Raises:
        InputError: models that are missing or do not fit together; the page cannot be written.
    """
    if out is not None:
        check_outputs({"out": Path(out)}, [])
    models = resolve_models(base, specialists, allow)
    with progress_line(show_progress) as progress:
        models.fetch(progress)
        bank = StreamedBank(models.base, models.specialists, progress=progress)
        groups = _groups(bank)
    advice = _advice(
        str(models.base.ref), bank.specialists, groups, models.base.family, models.num_layers, models.notes
    )
    if out is not None:
        write_output(Path(out), advice_page(advice), "out")
    return advice


def _groups(bank: StreamedBank) -> dict[str, Group]:
    """Of each merged tensor."""
    count = len(bank.specialists)
    pairs = list(combinations(range(count), 2))
    scalars = [
        {"first": _one(a, count), "second": _one(b, count), "direction": [direction]}
        for a, b in pairs
        for direction in (1.0, -1.0)
    ]
    totals = bank.totals(BlockFunction(moved_in), scalars) if pairs else {}
    found = {}
    for name, products in bank.inner_products().items():
        agreeing, opposed = np.zeros((count, count)), np.zeros((count, count))
        sums = totals.get(name, ())
        for (a, b), alike, apart in zip(pairs, sums[::2], sums[1::2], strict=True):
            agreeing[a, b] = agreeing[b, a] = alike
            opposed[a, b] = opposed[b, a] = apart
        found[name] = Group(np.asarray(products, np.float64), agreeing, opposed)
    return found


def _one(place: int, count: int) -> list[float]:
    return [float(k == place) for k in range(count)]


def moved_in(block: Block, scalars: Mapping[str, Tensor]) -> Tensor:
    """1 where the products of two task vectors' entries have the sign of `direction`."""
    vectors = block.task_vectors
    first, second = (
        sum_of([scalars[which][k] * vector.sign() for k, vector in enumerate(vectors)]) for which in ("first", "second")
    )
    return (first * second * scalars["direction"] > 0).float()


def _advice(
    base: str,
    specialists: Sequence[str],
    groups: Mapping[str, Group],
    family: ModelFamily,
    num_layers: int,
    notes: Sequence[str],
) -> Advice:
    layers: dict[str, list[Group]] = {f"layer {index}": [] for index in range(num_layers)}
    kinds: dict[str, list[Group]] = defaultdict(list)
    for name, group in groups.items():
        layer = family.layer_of(name, num_layers)
        layers.setdefault(BESIDE if layer is None else f"layer {layer}", []).append(group)
        kinds[family.module_kind(name)].append(group)
    if not groups:
        raise InputError(f"base ({base}): has no tensor that is merged")
    whole = _sum(list(groups.values()))
    by_layer = {name: _sum(some) for name, some in layers.items() if some}
    by_kind = {name: _sum(kinds[name]) for name in sorted(kinds)}
    moved = {name: float(size) for name, size in zip(specialists, whole.sizes, strict=True) if size > 0}
    starts = {"metagpt": metagpt(moved), "kappa": dict.fromkeys(moved, kappa(list(moved.values())))} if moved else {}
    remarks = tuple(_remarks(specialists, whole, by_layer))
    return Advice(base, tuple(specialists), whole, by_layer, by_kind, starts, remarks, tuple(notes))


def _sum(groups: Sequence[Group]) -> Group:
    return sum(groups[1:], groups[0])


def _remarks(specialists: Sequence[str], whole: Group, by_layer: Mapping[str, Group]) -> Iterator[str]:
    """What is worth knowing, most important first."""
    sizes, cosines = whole.sizes, whole.cosines
    for place in np.flatnonzero(sizes == 0):
        yield f"{specialists[place]} is the base: it brings nothing to a merge."
    moved = [place for place in np.argsort(-sizes) if sizes[place] > 0]
    if len(moved) > 1 and sizes[moved[0]] > _LARGER * sizes[moved[-1]]:
        most, least = specialists[moved[0]], specialists[moved[-1]]
        yield (
            f"{most} moved {sizes[moved[0]] / sizes[moved[-1]]:.1f} times as far as {least}: give each a coefficient "
            "of its own (`per: specialist`), or it drowns the others."
        )
    pairs = list(combinations(sorted(moved), 2))
    for a, b in pairs:
        pair = f"{specialists[a]} and {specialists[b]}"
        if cosines[a, b] >= _ALIKE:
            yield f"{pair} go the same way (cosine {cosines[a, b]:.2f}): their sum goes further than either."
        elif cosines[a, b] <= _APART and (layer := _lowest(by_layer, a, b)):
            yield (
                f"{pair} pull apart (cosine {cosines[a, b]:.2f}), most in {layer} "
                f"({by_layer[layer].cosines[a, b]:.2f}): methods that elect signs, such as ties, are made for that."
            )
    if pairs and max(abs(cosines[a, b]) for a, b in pairs) < abs(_APART):
        yield "The task vectors are nearly at right angles: they add without much disturbing each other."


def _lowest(by_layer: Mapping[str, Group], a: int, b: int) -> str | None:
    """Where the cosine of a pair is lowest, among the layers that both have moved; None if there is none."""
    moved = [name for name, group in by_layer.items() if group.sizes[a] > 0 and group.sizes[b] > 0]
    return min(moved, key=lambda name: by_layer[name].cosines[a, b], default=None)


def advice_tables(advice: Advice) -> list[Table]:
    """Advice as people read it, narrow enough for 80 columns."""
    sizes = Table(title="How far specialists moved, over the base's size, and coefficients to begin with")
    sizes.add_column("specialist", overflow="fold")
    columns = ["all", *advice.by_kind, *advice.starts]
    for column in columns:
        sizes.add_column(column, justify="right")
    for place, name in enumerate(advice.specialists):
        drifts = [f"{group.drift[place]:.4f}" for group in (advice.whole, *advice.by_kind.values())]
        sizes.add_row(terminal_text(name), *drifts, *(_start(values.get(name)) for values in advice.starts.values()))
    pairs = Table(title="How pairs lie to each other")
    for column in ("pair", "cosine", "same sign", "lowest cosine in"):
        pairs.add_column(column, justify="right" if column in ("cosine", "same sign") else "left", overflow="fold")
    for a, b in advice.pairs():
        lowest = _lowest(advice.by_layer, a, b)
        pairs.add_row(
            terminal_text(f"{advice.specialists[a]}, {advice.specialists[b]}"),
            f"{advice.whole.cosines[a, b]:.3f}",
            f"{advice.whole.agreement[a, b]:.1%}",
            "–" if lowest is None else f"{lowest} ({advice.by_layer[lowest].cosines[a, b]:.3f})",
        )
    return [sizes, pairs] if len(advice.specialists) > 1 else [sizes]


def _start(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
