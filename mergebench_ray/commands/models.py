"""Resolving the models that a command was given, checked against each other before any weight is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergebench_ray.checkpoints import Checkpoint, check_accompanying_files, fit, resolve
from mergebench_ray.checkpoints.reproduction import Reproduction, installed_versions
from mergebench_ray.checkpoints.sources import is_local
from mergebench_ray.config import MergedParts, ModelRef, Recipe
from mergebench_ray.config.merged_parts import DEFAULT_PARTS
from mergebench_ray.config.reference import exists_here
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage.fetched import RemoteFile, require_room
from mergebench_ray.progress import Progress, silent

if TYPE_CHECKING:  # judges' modules take seconds to import, and a merge has none
    from mergebench_ray.judges.judge_engine import FoundJudge


@dataclass(frozen=True)
class Models:
    """A base and specialists that fit together.

    Attributes:
        base: the base.
        specialists: by sorted name.
        notes: rules applied where checkpoints differ, judges that will be missing, a sandbox that is weak.
        judges: the judges that scoring needs, by name.
        allow: settings that may differ although they change what a model computes.
    """

    base: Checkpoint
    specialists: dict[str, Checkpoint]
    notes: list[str]
    judges: dict[str, FoundJudge] = field(default_factory=dict)
    allow: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """Transformer layers of the base."""
        return self.base.num_layers

    def reproduction(self, recipe: Recipe) -> Reproduction:
        """What a merge of them is made with, here and now."""
        references = [one.ref for one in (self.base, *self.specialists.values())]
        parts = [part for ref in references for part in (ref.model, ref.adapter) if part is not None]
        samples = [one.data for one in recipe.calibration.inputs.values()] if recipe.calibration else []
        return Reproduction(
            recipe=recipe.digest,
            versions=installed_versions(),
            allow=list(self.allow),
            notes=self.notes,
            local=sorted({*(str(part) for part in parts if is_local(part)), *filter(exists_here, samples)}),
        )

    def fetch(self, progress: Progress = silent) -> None:
        """Have weights that are in object storage on this node, those of one model after the other.

        Raises:
            InputError: as `Checkpoint.fetch`; or there is no room for all of them.
        """
        checkpoints = [self.base, *self.specialists.values()]
        states = (info.state for one in checkpoints for info in one.tensors.values())
        require_room((state for state in states if isinstance(state, RemoteFile)), progress)
        for checkpoint in checkpoints:
            checkpoint.fetch(progress)


def resolve_models(
    base: ModelRef | Path | str,
    specialists: Mapping[str, ModelRef] | Mapping[str, Path | str],
    allow: Collection[str] = (),
    merged: MergedParts = DEFAULT_PARTS,
) -> Models:
    """Find the checkpoints and check that they can be merged; reads headers, and the base's tokenizer.

    Args:
        base: the base.
        specialists: by name.
        allow: settings that may differ although they change what a model computes.
        merged: which parts are merged.

    Raises:
        InputError: a checkpoint that is missing, damaged, of another kind, or does not fit.
    """
    if not specialists:
        raise InputError("no specialists given: name at least one, as NAME=REF")
    found_base = resolve(base).merging(merged)
    found = {name: resolve(specialists[name]) for name in sorted(specialists)}
    fitted = fit(found_base, found, allow)
    beside = [f"base ({found_base}): {note}" for note in check_accompanying_files(found_base.folder)]
    return Models(found_base, fitted.specialists, [*fitted.notes, *beside], allow=tuple(allow))
