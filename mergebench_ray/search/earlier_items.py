"""Items that models were scored on in other runs, so that none is asked twice: same weights, same item, same settings.

Nothing is kept beside the runs: their own folders are looked through, whenever a model is to be scored.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.checkpoints.accompanying_files import accompanying_files, is_licence
from mergebench_ray.checkpoints.digest import file_digest
from mergebench_ray.config import EngineOptions, Suite
from mergebench_ray.config.fields import SPLITS, Split
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItem, GradedItems
from mergebench_ray.evaluation.grading import ABSENT
from mergebench_ray.installed_code import installed_code, sources_of
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.scores import ItemRow
from mergebench_ray.search.kept_items import kept_row, read_kept
from mergebench_ray.search.standing import answered_recipe, read_answered
from mergebench_ray.tasks.item_digests import item_digests
from mergebench_ray.tasks.scored_task import ScoredTask

_NO_MATTER = frozenset({"count", "division", "dtype", "num_gpus", "transport"})
"""Engine settings that say who computes, not what; what "auto" came to is told by the versions."""
_PACKAGES_OF_THE_SEARCH = frozenset({"ray", "optuna", "optunahub", "plotly"})


@dataclass(frozen=True)
class Known:
    """What is known of a model on a split from other runs.

    Attributes:
        items: those of the wanted items that were scored.
        sources: run -> how many of them have a score from there; one that its metric leaves out has none.
        is_all: whether nothing is left to ask.
        origins: of each item, from which run it is.
    """

    items: GradedItems = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    is_all: bool = False
    origins: Mapping[int, str] = field(default_factory=dict)

    def sources_of(self, places: Iterable[int]) -> dict[str, int]:
        """Run -> how many of some items have a score from there."""
        return dict(Counter(self.origins[one] for one in places if self.items[one].value is not ABSENT))


NOTHING = Known()


class EarlierItems:
    """Looks for a model's items in the folders of other runs.

    A folder that cannot be read, or is damaged, is passed over with a note. A run that goes on meanwhile is read as far
    as it has come.

    Args:
        folders: of runs, by the name that rows call them.
        tasks: of each split.
        conditions: what answers depend on besides weights and items, as `answer_conditions` gives it.
        note: called with what is passed over, once for each.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        tasks: Mapping[Split, Sequence[ScoredTask]],
        conditions: Mapping[str, Any],
        note: Callable[[str], None],
    ) -> None:
        self._folders, self._note = dict(folders), note
        self._noted: set[Path] = set()
        self._recipes: dict[Path, str] = {}
        frame = canonical_digest(dict(conditions))
        self._digests = {
            split: [canonical_digest([one, frame]) for one in item_digests(some)] for split, some in tasks.items()
        }
        self._clusters = {
            split: [item.cluster for task in some for item in task.items] for split, some in tasks.items()
        }
        self._domains = {split: [task.domain for task in some for _ in task.items] for split, some in tasks.items()}

    def known(self, weights: str, split: Split, domains: Iterable[str] | None = None) -> Known:
        """What is known of a model.

        Args:
            weights: the digest of a recipe, or of a checkpoint's content.
            split: whose items are wanted; they may have been another run's on another split.
            domains: whose items are wanted; None for all.
        """
        if not self._folders or split not in self._digests:
            return NOTHING
        wanted = self.digests(split, domains)
        items: dict[int, GradedItem] = {}
        origins: dict[int, str] = {}
        for name, folder in self._folders.items():
            found = self._items(folder, weights) if len(items) < len(wanted) else {}
            for place, digest in wanted.items():
                if place not in items and digest in found:
                    # What belongs together is up to this run's suite.
                    row: ItemRow = {**found[digest].row, "cluster": self._clusters[split][place]}
                    items[place] = replace(found[digest], row=row)
                    origins[place] = name
        known = Known(items, {}, len(items) == len(wanted), origins)
        return replace(known, sources=known.sources_of(items))

    def digests(self, split: Split, domains: Iterable[str] | None = None) -> dict[int, str]:
        """Place -> digest of an item and of all that its score depends on but the weights.

        Args:
            split: whose items.
            domains: whose items; None for all.
        """
        chosen = None if domains is None else set(domains)
        return {
            place: digest
            for place, digest in enumerate(self._digests.get(split, []))
            if chosen is None or self._domains[split][place] in chosen
        }

    def rows(self, split: Split, items: GradedItems) -> list[dict[str, Any]]:
        """Items of a model as its run keeps them, in the order of the split."""
        digests = self._digests.get(split)
        return [kept_row(items[place], None if digests is None else digests[place]) for place in sorted(items)]

    def _items(self, folder: Path, weights: str) -> dict[str, GradedItem]:
        run, found = RunFolder(folder), dict[str, GradedItem]()
        for split in SPLITS:
            path = run.items_file(weights, split)
            with self._noting(path):
                found = read_kept(path) | found
        # What a race has stopped, or lets wait, has answered some.
        for path in sorted(run.race_folder.glob("*.jsonl")):
            with self._noting(path):
                if path not in self._recipes and (recipe := answered_recipe(path)) is not None:
                    self._recipes[path] = recipe
                if self._recipes.get(path) == weights:
                    found = read_answered(path, weights) | found
        return found

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Pass a file over that is not there, or damaged."""
        try:
            yield
        except FileNotFoundError:
            return
        except (InputError, OSError, ValueError) as error:
            reason = f"{path}: cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
            if path not in self._noted:
                self._noted.add(path)
                self._note(f"its scores are not used again: {reason.partition('; ')[0]}")


NONE_EARLIER = EarlierItems({}, {}, {}, lambda _text: None)


def run_folders(own: Path, others: Iterable[Path] = ()) -> dict[str, Path]:
    """Runs whose items may be known: those beside a run's folder, and others, by the names that rows call them."""
    own = own.resolve()
    found: dict[str, Path] = {}
    beside: list[Path] = []
    with suppress(OSError):  # a folder that may be entered, but not listed
        beside = sorted(own.parent.iterdir())
    for folder in (*beside, *others):
        try:
            run = RunFolder(folder.resolve())
            is_run = run.path != own and run.sweep_file.is_file() and run.trials_file.is_file()
        except (OSError, RuntimeError):  # links in a circle
            continue
        if is_run and run.path not in found.values():
            # By its own name, also where a link such as "latest" leads to it.
            name = run.path.name if run.path.name not in found else str(run.path)
            found[name] = run.path
    return found


def answer_conditions(
    base: Checkpoint,
    suite: Suite,
    engine: EngineOptions,
    versions: Mapping[str, str],
    judges: Iterable[FoundJudge] = (),
    *,
    weak_sandbox: bool = False,
) -> dict[str, Any]:
    """What a model's scores depend on, besides the digest of its recipe and that of the item.

    Of code it is all that is there, since no one can tell which packages grade; a method's own is in the recipe.

    Args:
        base: whose configuration and tokenizer the engines use.
        suite: says how long prompts may be.
        engine: settings of the engines.
        versions: of packages, and what the engines compute in and on, as rows have them.
        judges: those at hand.
        weak_sandbox: whether programs may run where the sandbox is weak.
    """
    return {
        "config": json.dumps(base.config, sort_keys=True),
        "files": _files_of(base),
        "judges": {one.name: [_files_of(one.checkpoint), sources_of([one.find_parser()])] for one in judges},
        "code": installed_code(_PACKAGES_OF_THE_SEARCH),
        "weak_sandbox": weak_sandbox,
        "max_model_len": suite.max_model_len,
        "engine": engine.model_dump(mode="json", exclude=set(_NO_MATTER)),
        "versions": versions_that_matter(versions),
        "python": platform.python_version(),
    }


def versions_that_matter(versions: Mapping[str, str]) -> dict[str, str]:
    """Of a row's versions, those that a score depends on."""
    return {name: one for name, one in versions.items() if name not in _PACKAGES_OF_THE_SEARCH}


def _files_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Tokenizer and settings of a model, by file."""
    return {
        str(file.relative_to(checkpoint.folder)): file_digest(file)
        for file in accompanying_files(checkpoint.folder)
        if not is_licence(file.name)
    }
