"""Reading calibration data from where a user says it is, before anything expensive starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from jinja2 import TemplateError

from mergebench_ray.calibration import Calibration, Sample
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.commands.models import Models
from mergebench_ray.config import CalibrationOptions, CalibrationSource, Suite
from mergebench_ray.errors import InputError, one_line
from mergebench_ray.methods import get_method, parse_parameters
from mergebench_ray.tasks.local_data import SUFFIXES, LocalSplits, local_source, read_rows
from mergebench_ray.tasks.training_texts import training_texts

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


def load_calibration(
    models: Models,
    merges: Iterable[tuple[str, Mapping[str, Any]]],
    options: CalibrationOptions,
    suite: Suite | None = None,
    data: Mapping[str, str] | None = None,
) -> Calibration | None:
    """Read as many samples as the merges need; None where they need none.

    Args:
        models: base and specialists.
        merges: methods with their hyper-parameters, completed.
        options: says where samples are.
        suite: says it for specialists that `options` leave out.
        data: hub data set -> local file or folder.

    Raises:
        InputError: a base that cannot be calibrated; or a specialist without data, unreadable data, or a missing field.
    """
    sources = {**(suite.calibration if suite else {}), **options.data}
    unknown = sorted(set(options.data) - set(models.specialists))
    if unknown:
        raise InputError(
            f"calibration data for {unknown[0]!r}: there is no such specialist, only {', '.join(models.specialists)}"
        )
    needed: dict[str, int] = {}
    for method, parameters in merges:
        needed[method] = max(
            get_method(method).calibration_samples(parse_parameters(method, parameters)) or 0, needed.get(method, 0)
        )
    most = max(needed.values(), default=0)
    if not most:
        return None
    kinds = {kind for method, count in needed.items() if count for kind in get_method(method).statistics}
    from mergebench_ray.calibration.model import require_calibratable  # seconds, for transformers

    require_calibratable(models.base, kinds)
    samples = {
        name: read_samples(name, sources[name], most, models.base, data or {})
        for name in models.specialists
        if name in sources
    }
    calibration = Calibration(models.base, models.specialists, sources, samples, options)
    for method, count in needed.items():
        if count:
            calibration.record(method, count)
    return calibration


def read_samples(
    specialist: str, source: CalibrationSource, limit: int, base: Checkpoint, data: Mapping[str, str]
) -> list[Sample]:
    """The first samples of a source, with its template applied.

    Args:
        specialist: whose samples they are, for messages.
        source: where they are.
        limit: how many at most.
        base: whose chat template is used.
        data: hub data set -> local file or folder.

    Raises:
        InputError: naming specialist, source and what is wrong with it.
    """
    where = f"calibration data of {specialist}, {source.data}"
    if source.is_task:
        suite, _, task = source.data.rpartition(":")
        pairs = training_texts(Suite.load(suite), task, limit)
    else:
        rows = _rows(source, limit, data, where)
        pairs = [_fields(row, number, source, where) for number, row in enumerate(rows, start=1)]
    if not pairs:
        raise InputError(f"{where}: there are no samples in it; name another source")
    render = _renderer(source.template, base, where)
    return [Sample(render(prompt), response) for prompt, response in pairs]


def _rows(source: CalibrationSource, limit: int, data: Mapping[str, str], where: str) -> list[dict[str, Any]]:
    local = local_source(data, source.data, None)
    if local is not None and os.path.isdir(local):
        split = LocalSplits(source.data, None, local, None)[source.split]
        return [dict(row) for row in islice(split, limit)]
    path = local or Path(os.path.expanduser(source.data))
    if path.suffix in SUFFIXES:
        if not os.path.exists(path):
            raise InputError(f"{where}: {path}: no such file; check the path")
        return read_rows(path)[:limit]
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(f"{where}: {path}: not a file of samples ({', '.join(SUFFIXES)}); check the path")
    name, _, revision = source.data.partition("@")
    try:
        part = f"{source.split}[:{limit}]"
        rows = datasets.load_dataset(name, revision=revision or None, split=part, trust_remote_code=False)
    except Exception as error:  # of whichever library a data set's loader uses
        raise InputError(
            f"{where}: neither a file ({', '.join(SUFFIXES)}), nor SUITE:TASK, nor a data set that can be loaded "
            f"({one_line(error)}); check the name, or give a local file"
        ) from error
    return list(rows)


def _fields(row: Mapping[str, Any], number: int, source: CalibrationSource, where: str) -> tuple[str, str]:
    for field in (source.prompt, source.response):
        if not isinstance(row.get(field), str):
            raise InputError(
                f"{where}: row {number} has no text in field {field!r} (it has {', '.join(map(str, row))}); name the "
                "fields with 'prompt' and 'response' in calibration.data"
            )
    return row[source.prompt], row[source.response]


def _renderer(template: str, base: Checkpoint, where: str) -> Callable[[str], str]:
    """What turns a prompt into the text that the model sees."""
    if template == "plain":
        return str
    if template == "alpaca":
        return lambda prompt: _ALPACA.format(prompt=prompt)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise InputError(f"{where}: template chat, but {base} has no chat template; use plain or alpaca")

    def chat(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise InputError(f"{where}: the chat template of {base} refuses a prompt ({error})") from error

    return chat
