"""What can be known to be wrong with a command before models, tasks or a cluster are touched.

The command line asks this before it imports the command itself, which takes seconds; the command asks it again for
whoever calls it from Python.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.accompanying_files import recipe_file
from mergebench_ray.checkpoints.sources import check_there, is_local, locate
from mergebench_ray.config import ModelRef, Suite, Sweep
from mergebench_ray.config.evaluation import ModelEvaluationOptions
from mergebench_ray.config.fields import DATA_SPLITS, DataSplit
from mergebench_ray.config.reference import HUB_ID, reference_text
from mergebench_ray.config.suite import built_in_suites
from mergebench_ray.config.sweep import built_in_sweeps
from mergebench_ray.config.yaml_files import parse_model, read_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.files import check_new_file, check_writable
from mergebench_ray.methods import load_methods
from mergebench_ray.ray_address import check_ray
from mergebench_ray.runs.evaluation_file import items_file
from mergebench_ray.runs.opening import check_run_folder, check_same_methods
from mergebench_ray.runs.run_folder import RunFolder, best_of_run
from mergebench_ray.search.checks import check_sweep, open_sweep, read_sweep


@dataclass(frozen=True)
class AskedAs:
    """How `evaluate` puts items to a model, and which; arguments as there."""

    apply_chat_template: bool = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] | None = None
    limit: float | None = None
    samples: Mapping[str, Sequence[int]] | str | None = None


def checked_run(
    sweep: Path | str | Sweep,
    overrides: Mapping[str, Any] | None,
    out: Path | str | None,
    *,
    resume: bool,
    address: str | None = None,
    dashboard_port: int | None = None,
) -> tuple[Sweep, Path]:
    """The sweep of `tune`, and the run's folder.

    Raises:
        InputError: as `read_sweep`, `check_run_folder` and `check_ray`.
    """
    checked = open_sweep(sweep, overrides)
    folder = Path(out) if out is not None else Path("runs") / checked.name
    check_run_folder(folder, checked, resume=resume)
    check_sweep(checked)
    check_same_methods(RunFolder(folder.resolve()), checked)
    check_ray(address, dashboard_port=dashboard_port)
    return checked, folder


def checked_evaluation(
    model: Path | str,
    suite: Path | str,
    split: str,
    tasks: Sequence[str] | None,
    engines: int,
    out: Path | str | None,
    options: Mapping[str, Any],
    address: str | None = None,
    lm_eval_out: Path | str | None = None,
) -> tuple[Suite, DataSplit, ModelEvaluationOptions]:
    """The suite with the chosen tasks, the split and the options of `evaluate`; arguments as there.

    Raises:
        InputError: naming option, value and rule.
    """
    if split not in DATA_SPLITS:
        raise InputError(f"split {split!r:.80}: must be validation or test")
    if engines < 1:
        raise InputError(f"engines {engines}: must be at least 1")
    if out is not None:
        check_new_file(Path(out))
        check_new_file(items_file(Path(out)))
    if lm_eval_out is not None:
        check_writable(Path(lm_eval_out), "--lm-eval-out")
    which: DataSplit = "validation" if split == "validation" else "test"
    chosen = Suite.load(suite)
    if tasks is not None:
        chosen = chosen.only_tasks(list(tasks), which)
    parsed = parse_model(ModelEvaluationOptions, dict(options), "evaluate")
    check_there(ModelRef.parse(model))
    check_ray(address)
    return chosen, which, parsed


def check_bench(model: str | None, json_file: Path | str | None, methods_folder: Path | str | None = None) -> None:
    """What can be wrong with `bench`; arguments as there.

    Raises:
        InputError: no such model, the file cannot be made, or a method that cannot be imported.
    """
    if methods_folder is not None:
        load_methods(methods_folder)
    if json_file is not None:
        check_new_file(Path(json_file), "--json")
    if model is not None:
        check_there(ModelRef.parse(model))


def read_sweep_or_suite(name: str) -> tuple[Sweep | None, Suite]:
    """A sweep with its suite, or a suite alone: of a file that holds either, or by its name where it ships.

    Raises:
        InputError: if there is none, or it is wrong, of a sweep as `check_sweep`.
    """
    file = Path(name) if os.path.lexists(name) else built_in_sweeps().get(name)
    if name in built_in_suites() or file is None or "methods" not in read_yaml(file):
        return None, Suite.load(name)
    sweep = read_sweep(name)
    return sweep, sweep.load_suite()


def evaluation_settings(
    items: int | None,
    allow_code_execution: bool,
    allow_weak_sandbox: bool,
    data: Mapping[str, Path | str] | None,
    judges: Mapping[str, Path | str] | None,
    asked: AskedAs | None = None,
) -> dict[str, Any]:
    """Arguments of `evaluate` as a sweep would say them.

    Raises:
        InputError: a limit or samples that are neither of lm-eval's forms.
    """
    asked = asked or AskedAs()
    limit = asked.limit
    if limit is not None and items is not None:
        raise InputError(f"items {items} and limit {limit:g} both say how many items are asked; keep one")
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and float(limit).is_integer())):
        raise InputError(f"limit {limit:g}: give a number of items, or a share of them below 1")
    whole = items if limit is None or limit < 1 else int(limit)
    settings = {
        "validation_items": whole,
        "test_items": whole,
        "allow_code_execution": allow_code_execution,
        "allow_weak_sandbox": allow_weak_sandbox,
        "data": {name: str(one) for name, one in (data or {}).items()},
        "judges": {name: {"model": reference_text(one)} for name, one in (judges or {}).items()},
        "apply_chat_template": asked.apply_chat_template,
        "fewshot_as_multiturn": asked.fewshot_as_multiturn,
        "system_instruction": asked.system_instruction,
        "gen_kwargs": dict(asked.gen_kwargs or {}),
        "samples": None if asked.samples is None else _samples(asked.samples),
    }
    return settings if limit is None or limit >= 1 else {**settings, "items_share": limit}


def _samples(samples: Mapping[str, Sequence[int]] | str) -> Any:
    """Places of items, or JSON of them, or a file of that."""
    if not isinstance(samples, str):
        return {name: list(places) for name, places in samples.items()}
    try:
        text = samples if samples.lstrip().startswith("{") else Path(samples).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise InputError(f"samples {samples!r:.80}: neither JSON nor a file ({error.strerror}); check it") from error
    except ValueError as error:
        raise InputError(f'samples {samples!r:.80}: not valid JSON ({error}); write {{"TASK": [0, 1]}}') from error


def checked_merge_of(model: Path | str) -> ModelRef:
    """What `verify` and `push` are given: a merge, or a run's folder for its best model; there as far as is known here.

    Raises:
        InputError: it is not there, or nothing says how it was merged.
    """
    ref = ModelRef.parse(best_of_run(model))
    if ref.adapter is not None:
        raise InputError(f"{model}: a base with an adapter is no merge; give the folder or repository of one")
    check_there(ref)
    if is_local(ref):
        folder = locate(ref)
        if not (folder / "config.json").is_file():
            raise InputError(f"{model}: holds no model (no config.json); give a folder of merge, or of a run")
        recipe_file(folder, str(model))
    return ref


def check_repository_name(repo: str) -> None:
    """Refuse what cannot be the name of a hub's repository.

    Raises:
        InputError: saying what to write.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if not HUB_ID.fullmatch(repo):
            raise HFValidationError("it needs an owner and a name")
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"repository {repo!r}: {reason}; write OWNER/NAME, or s3://BUCKET/FOLDER for object storage"
        ) from error
