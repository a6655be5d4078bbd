"""What of a merge goes to a hub: its files, and texts in which nothing names a path of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.checkpoints.accompanying_files import accompanying_files
from mergebench_ray.checkpoints.card import Publication
from mergebench_ray.checkpoints.reproduction import (
    CARD_NAME,
    RecordedEvaluation,
    Reproduction,
    installed_versions,
    read_recipe,
    texts_beside,
)
from mergebench_ray.checkpoints.sources import is_local, is_on_hub
from mergebench_ray.config import ModelRef, Recipe
from mergebench_ray.config.calibration import CalibrationSource
from mergebench_ray.config.reference import HUB_ID, exists_here
from mergebench_ray.config.yaml_files import read_yaml
from mergebench_ray.config.yaml_reader import dump_yaml
from mergebench_ray.errors import InputError, one_line
from mergebench_ray.progress import Progress
from mergebench_ray.runs.evaluation_file import EvaluationFile
from mergebench_ray.runs.recorded import evaluation_of_file
from mergebench_ray.tasks.local_data import SUFFIXES

MERGEKIT_NAME = "mergekit_config.yml"
_RESULTS_FOLDER = ".eval_results"
_PATH_STARTS = ("./", "../", "/", "~")
_NOT_IN_REFERENCES = re.compile(r"[@+]")
_TEXTS = (".json", ".jinja", ".py", ".md", ".yaml")
_LICENCE_DETAILS = ("license_name", "license_link")


@dataclass(frozen=True)
class PublishedFile:
    """A file of a repository.

    Attributes:
        name: its path there.
        content: where it lies, or what is in it.
    """

    name: str
    content: Path | bytes

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Merge:
    """A merge that can be published.

    Attributes:
        checkpoint: its weights.
        recipe: how it was merged.
        record: what it was merged and scored with.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    record: Reproduction

    @classmethod
    def read(cls, folder: Path, scores: Path | None, report: Progress) -> Merge:
        """A folder as `merge` writes one; reads every byte of the weights, where their digest is not remembered.

        Args:
            folder: the folder.
            scores: what `evaluate --out` wrote about it.
            report: told what is happening.

        Raises:
            InputError: it holds no weights or no recipe, or the scores are another model's.
        """
        checkpoint = resolve(str(folder))
        recipe = read_recipe(folder, str(folder))
        record = Reproduction.read(folder) or Reproduction(recipe=recipe.digest)
        if record.recipe != recipe.digest:
            raise InputError(f"{folder}: recipe.yaml and reproduce.json are of two merges; restore them")
        report(0.0, f"reading {folder}")
        digest = checkpoint.digest()
        if record.weights not in (None, digest):
            raise InputError(
                f"{folder}: its weights are not those that reproduce.json names (SHA-256 {digest[:12]}… instead of "
                f"{record.weights:.12}…); fetch or make the model again"
            )
        record = record.model_copy(update={"weights": digest})
        if scores is not None:
            record = record.model_copy(update={"evaluation": _evaluation(scores, record)})
        return cls(checkpoint, recipe, record)

    @property
    def inputs(self) -> dict[str, ModelRef]:
        """Base and specialists, each with the parts that its reference is made of, by what people call them."""
        named = {"base": self.recipe.base, **dict(sorted(self.recipe.specialists.items()))}
        return {name: ModelRef.parse(text) for name, text in named.items()}

    def is_local(self, part: ModelRef) -> bool:
        """Whether a part of a reference was a path where the merge was made, or is one here."""
        return str(part) in self.record.local or is_local(part)


def publication(merge: Merge, repo: str, *, online: bool) -> tuple[Publication, list[str]]:
    """What the card says beside the recipe, as the cards of the inputs say it; and a note for what is not known.

    Args:
        merge: the merge.
        repo: where it goes.
        online: whether the hub may be asked about inputs that are there.
    """
    notes, cards = [], {}
    for name, ref in merge.inputs.items():
        cards[name], note = _card_of(merge, ref, online)
        notes += [f"{name}: {note}"] if note else []
    given, changed = _changed_card(merge)
    notes += changed
    base = cards["base"] or {}
    source = given or base
    licence = source.get("license") if isinstance(source.get("license"), str) else None
    if licence is None:
        why = "the base's licence is not known" if cards["base"] is None else "the base's card names no licence"
        notes.append(f"{why}, so this card names none: write `license:` in front of README.md, or add it on the hub")
    own = _licence_text(source if given else cards["base"])
    others = {name: _licence_text(card) for name, card in cards.items() if given or name != "base"}
    lines = [f"{name}: {text}" for name, text in others.items() if text != own]
    languages = [language for card in cards.values() for language in _texts((card or {}).get("language"))]
    return (
        Publication(
            repo,
            licence,
            "publisher" if given else "unread base" if cards["base"] is None else "base",
            lines,
            list(dict.fromkeys(languages)),
            str(base.get("pipeline_tag") or "text-generation"),
            {key: source[key] for key in _LICENCE_DETAILS if isinstance(source.get(key), str)},
        ),
        notes,
    )


def files_to_publish(
    merge: Merge, about: Publication, benchmarks: Mapping[str, str]
) -> tuple[list[PublishedFile], list[str]]:
    """All that goes into the repository, and a note for what does not.

    Args:
        merge: the merge.
        about: what the card says beside the recipe.
        benchmarks: domain -> DATASET:TASK, which its score counts for on the hub.

    Raises:
        InputError: a text would name a path of this machine; or a benchmark of a domain that has no score.
    """
    folder = merge.checkpoint.folder
    weights = {info.file.name for info in merge.checkpoint.tensors.values()}
    names = {"config.json", "model.safetensors.index.json", *weights}
    names |= {str(file.relative_to(folder)) for file in accompanying_files(folder)}
    if any(
        "auto_map" in (folder / name).read_text("utf-8", "replace") for name in names if name.endswith("config.json")
    ):
        names |= {file.name for file in folder.glob("*.py")}
    files = [PublishedFile(name, folder / name) for name in sorted(names) if (folder / name).is_file()]
    texts = _public_texts(merge, about)
    texts |= _results(merge.record.evaluation, benchmarks)
    for name, text in texts.items():
        _require_no_path(name, text, merge)
    for file in files:
        if isinstance(file.content, Path) and _may_name_paths(file.name):
            _require_no_path(file.name, file.content.read_text("utf-8", "replace"), merge)
    files += [PublishedFile(name, text.encode()) for name, text in texts.items()]
    lying = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    left = sorted(lying - {file.name for file in files})
    return sorted(files, key=lambda file: file.name), [f"{name} is left out" for name in left]


def _evaluation(file: Path, record: Reproduction) -> RecordedEvaluation:
    """What `evaluate --out` wrote, if that is about these weights."""
    found = EvaluationFile.read(file)
    if record.evaluation is not None:
        raise InputError(f"--scores {file}: the model brings the scores of its search; leave it out")
    if found.digest != record.weights:
        raise InputError(f"--scores {file}: of other weights than these; score this folder with `evaluate --out`")
    return evaluation_of_file(found, installed_versions())


def _changed_card(merge: Merge) -> tuple[dict[str, Any], list[str]]:
    """What README.md names as the licence where it is not what `merge` wrote; and notes that the rest is not kept."""
    folder = merge.checkpoint.folder
    file = folder / CARD_NAME
    record = Reproduction.read(folder) or merge.record
    if not file.is_file() or file.read_text("utf-8", "replace") == texts_beside(merge.recipe, record)[CARD_NAME]:
        return {}, []
    card, problem = _card_in(file)
    given = {key: value for key, value in (card or {}).items() if key in ("license", *_LICENCE_DETAILS)}
    kept = "of this file `license` alone is kept" if given.get("license") else "nothing of this file is kept"
    notes = [f"README.md is not what `merge` writes: the card is made anew, {kept}; change it on the hub"]
    return (given if given.get("license") else {}), [*notes, *([f"README.md: {problem}"] if problem else [])]


def _card_of(merge: Merge, ref: ModelRef, online: bool) -> tuple[dict[str, Any] | None, str]:
    """The front matter of an input's own card, of its adapter where it has one; or None, and why that is."""
    part = ref.adapter or ref.model
    if not merge.is_local(part) and is_on_hub(part):
        if not online:
            return None, "its card on the hub was not read, as the hub is offline"
        return _hub_card(part)
    if not merge.is_local(part):
        return None, "its card was not read, as it lies neither on the hub nor in a folder"
    file = Path(part.source).expanduser() / CARD_NAME
    if not file.is_file():
        return None, f"has no card ({file.name}) that would name its licence"
    return _card_in(file)


def _card_in(file: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return dict(ModelCard.load(file).data.to_dict()), ""
    except Exception as error:  # of whichever YAML is in it
        return None, f"its card cannot be read ({one_line(error)})"


def _hub_card(ref: ModelRef) -> tuple[dict[str, Any] | None, str]:
    from huggingface_hub import HfApi

    try:
        data = HfApi().model_info(ref.hub_id, revision=ref.revision).card_data
    except Exception as error:  # a network's, or the hub's
        return None, f"its card on the hub cannot be read ({one_line(error)})"
    return ({} if data is None else dict(data.to_dict())), ""  # type: ignore[no-untyped-call]


def _licence_text(card: Mapping[str, Any] | None) -> str:
    """A licence as people call it."""
    if card is None:
        return "not known"
    found = card.get("license")
    name = card.get("license_name")
    return str(name if found == "other" and name else found or "its card names none")


def _texts(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _public_texts(merge: Merge, about: Publication) -> dict[str, str]:
    """Card, recipe and record with other names for what are paths here."""
    public = _PublicNames(merge)
    notes = map(public.in_text, merge.record.notes)
    recipe = Recipe.model_validate(public.replaced(merge.recipe.model_dump(exclude_none=True)))
    assert recipe.digest == merge.recipe.digest  # references are no part of it
    record = merge.record.model_copy(
        update={
            "local": [],
            "notes": [note for note in notes if not any(_names(path, note) for path in _private_paths(merge))],
            "sweep": public.sweep(merge.record.sweep),
        }
    )
    texts = texts_beside(recipe, record, about)
    mergekit = merge.checkpoint.folder / MERGEKIT_NAME
    if mergekit.is_file():
        texts[MERGEKIT_NAME] = dump_yaml(public.replaced(read_yaml(mergekit)))
    return texts


class _PublicNames:
    """What others see in place of paths: the last part of each, by which `verify` is told where it lies there."""

    def __init__(self, merge: Merge) -> None:
        self._names: dict[str, str] = {}
        for ref in merge.inputs.values():
            parts = [part for part in (ref.model, ref.adapter) if part is not None]
            named = [_name_of(str(part)) if merge.is_local(part) else str(part) for part in parts]
            self._names |= {str(part): name for part, name in zip(parts, named, strict=True)}
            self._names[str(ref)] = "+".join(named)
        calibration = merge.recipe.calibration
        for source in calibration.inputs.values() if calibration else ():
            if source.data in merge.record.local or _is_data_file(source):
                self._names[source.data] = Path(source.data).name

    def replaced(self, value: Any) -> Any:
        """Plain data, in which every text that is a path has its name."""
        if isinstance(value, dict):
            return {key: self.replaced(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.replaced(one) for one in value]
        if not isinstance(value, str):
            return value
        is_path = value.startswith(_PATH_STARTS) or ("/" in value and exists_here(value))
        return self._names.get(value) or (_name_of(value) if is_path else value)

    def sweep(self, sweep: Any) -> Any:
        """A sweep, which may name further files, without where data and judges lie, which changes no number."""
        if not sweep:
            return sweep
        evaluation = _without(sweep.get("evaluation"), "data")
        if judges := evaluation.get("judges"):
            evaluation["judges"] = {name: _without(one, "model") for name, one in judges.items()}
        parts = {"evaluation": evaluation, "calibration": _without(sweep.get("calibration"), "data")}
        kept = {key: parts.get(key, value) for key, value in sweep.items()}
        return self.replaced({**kept, "suite": Path(str(sweep.get("suite"))).name})

    def in_text(self, text: str) -> str:
        """A sentence with names in place of paths."""
        for path, name in sorted(self._names.items(), reverse=True):  # the longer of two that begin alike first
            if "/" in path and path != name:
                text = re.sub(rf"(?<![\w./~-]){re.escape(path)}(?![\w-]|\.\w)", name.replace("\\", r"\\"), text)
        return text


def _without(part: Any, key: str) -> dict[str, Any]:
    return {name: value for name, value in (part or {}).items() if name != key}


def _is_data_file(source: CalibrationSource) -> bool:
    """Whether samples come from a file, or a task of one, which may be named as if it were on the hub."""
    is_hub_id = HUB_ID.fullmatch(source.data.partition("@")[0]) is not None
    return source.is_task or not is_hub_id or Path(source.data).suffix in SUFFIXES or exists_here(source.data)


def _name_of(path: str) -> str:
    """The last part of a path, in letters that a reference is made of."""
    return _NOT_IN_REFERENCES.sub("-", Path(path).expanduser().absolute().name) or "model"


def _results(evaluation: RecordedEvaluation | None, benchmarks: Mapping[str, str]) -> dict[str, str]:
    """Scores for the leaderboards of benchmarks, in files of the form that the hub reads."""
    texts = {}
    for domain, benchmark in benchmarks.items():
        dataset, _, task = benchmark.partition(":")
        if not HUB_ID.fullmatch(dataset) or not task:
            raise InputError(f"--benchmark {domain}={benchmark}: write DOMAIN=OWNER/DATASET:TASK")
        one = evaluation.models[evaluation.model].get(domain) if evaluation else None
        if evaluation is None or one is None or one.score is None:
            raise InputError(f"--benchmark {domain}={benchmark}: the model has no score of {domain!r}")
        error = "" if one.standard_error is None else f", standard error {one.standard_error:.4f}"
        notes = (
            f"{one.metric or 'score'} on {one.items} items of the {evaluation.split} split of {evaluation.suite}{error}"
        )
        entry = EvalResultEntry(dataset_id=dataset, task_id=task, value=one.score, notes=notes)
        texts[f"{_RESULTS_FOLDER}/{domain}.yaml"] = dump_yaml(eval_result_entries_to_yaml([entry]))
    return texts


def _require_no_path(name: str, text: str, merge: Merge) -> None:
    """Refuse to publish a text that names a folder of this machine's user.

    Raises:
        InputError: naming both.
    """
    for path in _private_paths(merge):
        if _names(path, text):
            raise InputError(
                f"{name} would name {path}, a path of this machine: merge again with other references, or take it out "
                f"of the file in {merge.checkpoint.folder}"
            )


def _may_name_paths(file: str) -> bool:
    """Whether a file is a text that somebody's path may be in; the words of a vocabulary may look like one."""
    name = Path(file).name
    return name.endswith(_TEXTS) and name != "tokenizer.json" and "vocab" not in name


def _names(path: str, text: str) -> bool:
    # A hub id may end like a short path.
    return re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])", text) is not None


def _private_paths(merge: Merge) -> Iterator[str]:
    folders: Iterable[Path] = (Path.home(), Path.cwd(), merge.checkpoint.folder.resolve())
    found = {str(folder) for folder in folders} | {path for path in merge.record.local if path.startswith("/")}
    yield from sorted(path for path in found if path.count("/") > 1 or len(path) > 4)
