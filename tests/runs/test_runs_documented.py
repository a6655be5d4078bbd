"""Every column of the trials table, and every file of a run, is explained in docs/run-folder.md."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from made_up_trials import made_up_trials
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, trials_table
from mergebench_ray.scores import ObjectiveEstimate, ObjectiveValue

DOCUMENT = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text()
PART = r'(?:"[^"]*"|[^."]+)'


def _documented(table: str) -> list[str]:
    """Names in the first column of a table, of which capitals stand for any name."""
    rows = re.findall(r"^\| (`.*?) \|", DOCUMENT.split(table)[1], re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def _matches(documented: str, name: str) -> bool:
    pattern = re.sub(r"[A-Z]{2,}", lambda _: PART, re.escape(documented))
    nested = rf"(?:\.{PART})*" if documented.startswith("parameter.") else ""
    return re.fullmatch(pattern + nested, name) is not None


def _trials() -> list[Trial]:
    """Trials with every kind of column."""
    trials = made_up_trials(6)
    groups = {"scaling_coef": {"math": [0.1, 0.2], "a.b": [0.1, 0.2]}, "mu": {"math": 0.1}, "density": 0.2}
    counted = {"math": replace(trials[0].domains["math"], counted={"t": "acc"})}
    aims = {"worst_domain": ObjectiveValue(0.5, 0.1, 0.05)}
    odd = replace(trials[8], number=99, proposed_by="metagpt", parameters=groups, domains=counted)
    final = replace(trials[8], split="final", chosen=True, differences={"task arithmetic 0.4": (0.1, 0.05)})
    final = replace(final, reused_from={"a": 3}, taken_from="a")
    stopped = replace(
        trials[8], role="stopped", number=98, failure="lost", estimate=ObjectiveEstimate(0.4, 0.05, 20, 320)
    )
    several = replace(stopped, number=97, failure="lost", estimates={"math": ObjectiveEstimate(0.4, 0.05, 20, 320)})
    return [*trials, final, stopped, several, replace(odd, objectives=aims, constraints={"safety >= 0.9": 0.1})]


def test_every_column_of_the_trials_is_explained_and_none_that_is_not_there() -> None:
    columns, documented = trials_table(_trials()).column_names, _documented("## trials.parquet")
    assert [name for name in columns if not any(_matches(one, name) for one in documented)] == []
    assert [one for one in documented if not any(_matches(one, name) for name in columns)] == []


def test_coefficients_are_stored_once() -> None:
    trial = _trials()[-1]
    row = trial.flat()
    assert [name for name, value in row.items() if value == 0.2] == [
        "coefficient.math.1",
        'coefficient."a.b".1',
        "parameter.density",
    ]
    assert row["record"].count("[0.1, 0.2]") == len(trial.coefficients)


def test_every_file_of_a_run_is_explained() -> None:
    run = RunFolder(Path())
    files = [run.sweep_file, run.plan_file, run.study_file, run.trials_file, run.report_file, run.log_file]
    files += [run.decisions_file, run.race_folder / "NUMBER.jsonl", run.front_folder / "METHOD-NUMBER.yaml"]
    files += [run.losses_file, run.lock_file, run.id_file, run.recipe_file, run.items_file("DIGEST", "SPLIT")]
    files += [run.questions_file("SPLIT"), run.forgetting_folder / "NAME.json", run.judge_log("NAME")]
    files += [run.methods_folder / "FILE.py"]
    documented = _documented("# A run's folder")
    assert [str(file) for file in files if str(file) not in documented] == []
    assert f"{run.model_folder}/" in documented
