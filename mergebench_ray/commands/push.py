"""A model of this machine, published on the hub or uploaded to object storage."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergebench_ray.commands.progress import progress_line
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage.address import Address, is_address
from mergebench_ray.object_storage.published import check_new_address, publish
from mergebench_ray.runs.run_folder import best_of_run


@dataclass(frozen=True)
class PushResult:
    """What was sent, or would be.

    Attributes:
        place: where to: the repository's page, or an address in object storage.
        files: name -> size in bytes.
        is_sent: whether it was.
        private: whether others cannot see it.
        exists: whether the repository was there before; None where the hub was not asked.
        commit: address of the hub's commit; None where nothing was sent there.
        notes: what is not known or left out, a line each.
    """

    place: str
    files: dict[str, int]
    is_sent: bool
    private: bool = True
    exists: bool | None = None
    commit: str | None = None
    notes: list[str] = field(default_factory=list)


def push(
    model: Path | str,
    place: str,
    *,
    yes: bool = False,
    public: bool = False,
    replace: bool = False,
    scores: Path | str | None = None,
    benchmarks: Mapping[str, str] | None = None,
    show_progress: bool | None = None,
) -> PushResult:
    """Publish a merge on the hub, or upload a model to object storage; whole or not at all.

    To the hub go weights, tokenizer and the like, the card, and what `verify` makes the merge again from, in one
    commit; no text names a path of this machine. To object storage goes all that is in the folder, at once.

    Args:
        model: a folder, as `merge` writes one, or a run's folder, for its best model.
        place: OWNER/NAME on the hub; or s3://bucket/folder or gs://bucket/folder, which must hold nothing.
        yes: send it to the hub; without, only say what would be sent.
        public: let everybody see a new repository.
        replace: put the model in the place of what is in the repository.
        scores: what `evaluate --out` wrote about the model, where it is not of a search.
        benchmarks: domain -> OWNER/DATASET:TASK, the benchmark of the hub that its score counts for.
        show_progress: say what is happening; None where somebody looks, on a terminal and in a notebook.

    Raises:
        InputError: there is no model, it may not go there, or it cannot be sent.
    """
    folder = Path(best_of_run(model))
    if not is_address(place):
        from mergebench_ray.commands.first_checks import check_repository_name, checked_merge_of

        check_repository_name(place)
        _check_folder(folder)
        checked_merge_of(folder)
        return _push_to_hub(folder, place, yes, public, replace, scores, benchmarks or {}, show_progress)
    if yes or public or replace or scores is not None or benchmarks:
        raise InputError(f"{place}: of push's options none is for object storage, to which a folder goes as it is")
    address, option = Address.parse(place), "address"
    _check_folder(folder)
    check_new_address(address, option)
    with progress_line(show_progress) as report:
        publish(folder, address, report, option)
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    return PushResult(place, sizes, is_sent=True)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no model (no config.json); give a folder of merge, or of a run")


def _push_to_hub(
    folder: Path,
    repo: str,
    yes: bool,
    public: bool,
    replace: bool,
    scores: Path | str | None,
    benchmarks: Mapping[str, str],
    show_progress: bool | None,
) -> PushResult:
    from mergebench_ray.commands.hub_repository import (  # seconds, for torch and the hub's client
        Repository,
        fill,
        is_offline,
        look_at,
    )
    from mergebench_ray.commands.publication import Merge, files_to_publish, publication

    offline = is_offline()
    if offline and yes:
        raise InputError(f"{repo}: the hub is offline here (HF_HUB_OFFLINE); go online to publish")
    repository = (
        Repository(repo, exists=False, private=not public) if offline else look_at(repo, public=public, replace=replace)
    )
    with progress_line(show_progress) as report:
        merge = Merge.read(folder, None if scores is None else Path(scores), report)
        about, notes = publication(merge, repo, online=not offline)
        files, left_out = files_to_publish(merge, about, benchmarks)
    if repository.exists and public and repository.private:
        notes.append(f"{repo} is there already and stays private: change that on its page; --public is for a new one")
    gone = sorted(repository.files - {file.name for file in files})
    notes += [f"{name}, which is in {repo}, {'is removed' if yes else 'would be removed'}" for name in gone]
    notes += [*left_out, *(["the hub is offline here: what is in the repository is not known"] if offline else [])]
    message = (
        f"{merge.recipe.method} merge of {len(merge.recipe.specialists)} specialists, recipe {merge.recipe.digest[:12]}"
    )
    commit = fill(repository, files, message) if yes else None
    return PushResult(
        repository.url,
        {file.name: file.num_bytes for file in files},
        is_sent=yes,
        private=repository.private,
        exists=None if offline else repository.exists,
        commit=commit,
        notes=notes,
    )


def push_command(folder: Path, address: Address) -> str:
    """What to type for it."""
    return f"mergebench-ray push {shlex.quote(str(folder))} {shlex.quote(str(address))}"
