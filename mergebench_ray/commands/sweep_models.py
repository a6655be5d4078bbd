"""Resolving all models of a sweep or an evaluation: base and specialists that fit the suite, and its judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mergebench_ray.checkpoints import Checkpoint, fit
from mergebench_ray.checkpoints.headers import HeaderCheckpoint, resolve_headers
from mergebench_ray.commands.models import Models, resolve_models
from mergebench_ray.config import Suite, Sweep
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import DATA_SPLITS, Split
from mergebench_ray.errors import InputError
from mergebench_ray.families.configuration import attention_heads
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.judges.judges import find_judges
from mergebench_ray.placement.parts import calibration_kinds
from mergebench_ray.search.checks import check_domains
from mergebench_ray.tasks.code_execution import code_execution_notes
from mergebench_ray.tasks.data_use import check_data_is_used


def check_parallel(model: Checkpoint, size: int, key: str = "engine.tensor_parallel_size") -> None:
    """Check that a model's attention heads can be divided among GPUs, as vLLM does.

    Raises:
        InputError: naming `key` and the number of heads.
    """
    if size == 1:
        return
    for name, heads in attention_heads(model.config, model.config_file).items():
        # Heads of keys and values are copied where there are fewer of them than GPUs.
        if heads % size and not (name == "num_key_value_heads" and size % heads == 0):
            raise InputError(f"{key} = {size}: {model} has {name} = {heads}, which it does not divide; choose another")


def find_checked_judges(
    suite: Suite, options: EvaluationOptions, splits: Sequence[Split]
) -> tuple[dict[str, FoundJudge], list[str]]:
    """The judges that scoring needs, and a line for each that will be missing and for a sandbox that is weak.

    Raises:
        InputError: as `find_judges`; or a judge's model that cannot be divided as its settings say.
    """
    judges, missing = find_judges(suite, options, splits)
    for name, one in judges.items():
        check_parallel(one.checkpoint, one.judge.tensor_parallel_size, f"judge {name}: tensor_parallel_size")
    return judges, [*missing, *code_execution_notes(suite, options, splits)]


def resolve_sweep_models(sweep: Sweep, suite: Suite) -> Models:
    """The models of a sweep, with its scored domains checked to have specialists to be measured against.

    Raises:
        InputError: as `resolve_models` and `find_judges`; or a domain that the suite or the specialists do not have.
    """
    base, specialists = sweep.model_references(suite)
    check_domains(sweep, suite, specialists)
    check_data_is_used(suite, sweep.evaluation.data, sweep.calibration.data.values(), "evaluation.data")
    models = resolve_models(base, specialists, sweep.allow, sweep.merged)
    check_parallel(models.base, sweep.engine.tensor_parallel_size)
    if kinds := set(calibration_kinds(sweep)):
        from mergebench_ray.calibration.model import require_calibratable

        require_calibratable(models.base, kinds)
    judges, notes = find_checked_judges(suite, sweep.scoring(suite), DATA_SPLITS)
    return replace(models, judges=judges, notes=[*models.notes, *notes])


def resolve_headers_of(sweep: Sweep, suite: Suite) -> Models:
    """As `resolve_sweep_models`, of headers alone: what would have to be fetched is not, and its data are not read.

    Raises:
        InputError: as there, as far as headers show it.
    """
    base, specialists = sweep.model_references(suite)
    check_domains(sweep, suite, specialists)
    found_base = resolve_headers(base).merging(sweep.merged)
    fitted = fit(found_base, {name: resolve_headers(one) for name, one in specialists.items()}, sweep.allow)
    check_parallel(found_base, sweep.engine.tensor_parallel_size)
    judges, missing = find_judges(suite, sweep.scoring(suite), DATA_SPLITS, resolve_headers)
    absent = [str(one) for one in (found_base, *fitted.specialists.values()) if isinstance(one, HeaderCheckpoint)]
    note = f"weights, tokenizers and data of {', '.join(absent)} are not here: what they hold was not looked at"
    return Models(found_base, fitted.specialists, [note, *fitted.notes, *missing], judges)
