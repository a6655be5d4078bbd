"""Where the data of a sweep or suite would come from, before anything is started."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from mergebench_ray.commands.data_sets import DataSet, data_sets, judge_models
from mergebench_ray.commands.first_checks import read_sweep_or_suite
from mergebench_ray.config import Sweep
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.fields import DATA_SPLITS
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.judges.judges import check_judge_settings, judge_settings
from mergebench_ray.markup import line_text
from mergebench_ray.methods import get_method
from mergebench_ray.tasks.data_use import check_data_is_used
from mergebench_ray.tasks.loading import check_programs_may_run, check_task_files, chosen_domains
from mergebench_ray.tasks.splits import check_splits_apart

_COLUMNS = "{:7}{:7}{:9}{}"
_INDENT = 7 * " "


def data_check(sweep_or_suite: Path | str, data: Mapping[str, str] | None = None) -> list[DataSet]:
    """List the data sets and judges of a sweep, calibration included, or of a suite, its forgetting section included.

    Args:
        sweep_or_suite: sweep file, suite file, or name of a sweep or suite that ships.
        data: data set -> local file or folder, beside what the sweep says.

    Raises:
        InputError: if anything but data is wrong with the file, in the words of `tune` and `plan`.
    """
    sweep, suite = read_sweep_or_suite(str(sweep_or_suite))
    options = EvaluationOptions() if sweep is None else sweep.scoring(suite)
    domains = list(suite.scored) if sweep is None else chosen_domains(suite, options)
    calibration = {**suite.calibration, **sweep.calibration.data} if sweep is not None and _sees_data(sweep) else {}
    own_calibration = [] if sweep is None else sweep.calibration.data.values()
    check_data_is_used(suite, options.data, own_calibration, "evaluation.data")
    given = parse_model(EvaluationOptions, {"data": dict(data or {})}, "--data").data
    check_data_is_used(suite, given, own_calibration)
    needed = check_judge_settings(suite, options, domains, DATA_SPLITS)
    judges = [name for name in needed if judge_settings(name, suite, options) is not None]
    for split in DATA_SPLITS:
        asked = [one for one in domains if sweep is not None or split == "test" or one not in suite.forgetting]
        if sweep is not None:
            check_programs_may_run(suite, split, options, asked)
        check_task_files(suite, split, asked, judges, options.gen_kwargs)
    if sweep is not None:
        check_splits_apart(suite, domains)
    local = {**options.data, **given}
    return [*data_sets(suite, domains, local, calibration), *judge_models(suite, options, domains)]


def _sees_data(sweep: Sweep) -> bool:
    """Whether a method of the sweep is ever calibrated."""
    return any("calibration_samples" in get_method(name).Parameters.model_fields for name in sweep.methods)


def data_blocks(found: Iterable[DataSet], width: int) -> list[str]:
    """The list for a terminal: what matters first, nothing cut, no line broken inside a name or path."""
    lines = [_COLUMNS.format("there", "from", "licence", "data set or judge")]
    for one in found:
        lines.append(_COLUMNS.format("yes" if one.there else "no", one.source, _licence(one), line_text(one.id)))
        use = f"{', '.join(one.splits)} of {', '.join(one.tasks)}" if one.splits else ", ".join(one.tasks)
        whole_words = textwrap.TextWrapper(
            max(20, width - len(_INDENT)), break_long_words=False, break_on_hyphens=False
        )
        lines += [_INDENT + text for text in (*whole_words.wrap(line_text(use)), line_text(one.place))]
    return lines


def data_rows(found: Iterable[DataSet]) -> list[str]:
    """The list for another program: a line each, separated by tabs."""
    lines = ["\t".join(("there", "from", "licence", "data set or judge", "splits", "tasks", "place", "problem"))]
    for one in found:
        names = (one.id, ",".join(one.splits), ",".join(one.tasks), one.place, one.problem)
        lines.append("\t".join(["yes" if one.there else "no", one.source, _licence(one), *map(line_text, names)]))
    return lines


def _licence(one: DataSet) -> str:
    return "unknown" if one.gated is None else "gated" if one.gated else "open"


def problem_lines(found: list[DataSet]) -> list[str]:
    """A line for each reason why data sets cannot be had."""
    by_problem: dict[str, list[str]] = {}
    for one in found:
        if not one.there and not one.optional:
            by_problem.setdefault(one.problem, []).append(one.id)
    lines = [
        f"{ids[0]}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: {problem}"
        for problem, ids in by_problem.items()
    ]
    if lines:
        lines.append("give local copies with --data ID=PATH, or evaluation.data in the sweep")
    for one in found:
        if not one.there and one.optional:
            lines.append(f"judge {one.id}: {one.problem}; without it its tasks count keywords, and say so")
    return lines


def is_complete(found: list[DataSet]) -> bool:
    """Whether nothing is missing that scoring could not do without."""
    return all(one.there or one.optional for one in found)
