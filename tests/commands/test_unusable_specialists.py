"""Specialists that score nothing: what is shown of them, and how a run goes on once that is mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from made_up_trials import made_up_trials
from mergebench_ray.commands.live import LiveView
from mergebench_ray.commands.run_log import log_to
from mergebench_ray.commands.tune import _check_same_models, _keep_what_is_there
from mergebench_ray.commands.unusable_specialists import explanation
from mergebench_ray.config import Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.report.pages import write_report
from mergebench_ray.runs.items import write_questions
from mergebench_ray.runs.opening import check_run_folder, locked_run
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, unusable_specialists
from mergebench_ray.scores import DomainScore
from mergebench_ray.tasks.scored_task import items_digest


def specialist(name: str, score: float) -> Trial:
    return Trial("specialist", name, "validation", f"digest of {name}", "i", domains={name: DomainScore(score, 0.0, 4)})


def item(number: int, answer: str = "I do not know.") -> dict[str, Any]:
    row = {"domain": "math", "task": "sums", "item": str(number), "prompt_digest": "d", "score": 0.0}
    return {**row, "answer": answer, "judgement": "", "cluster": str(number)}


def question(number: int) -> dict[str, Any]:
    row = {"domain": "math", "task": "sums", "item": str(number), "prompt_digest": "d"}
    return {**row, "prompt": f"{'Think. ' * 50}What is 1 + {number}?", "expected": str(1 + number)}


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    store = TrialStore(tmp_path / "run")
    store.append(specialist("math", 0.0), [item(number) for number in range(4)])
    store.append(specialist("coding", 0.5), [{**item(0), "domain": "coding"}])
    write_questions(store.folder, "validation", [question(number) for number in range(4)])
    return store


def test_every_score_is_shown_and_three_answers_with_what_was_expected(store: TrialStore) -> None:
    lines = explanation(store.folder, store.trials())
    assert "math 0.000 ± 0.000 (4 items), coding 0.500 ± 0.000 (4 items)" in lines[0]
    assert len(lines) == 1 + 3 * 4
    assert lines[5] == "math, task sums, item 1, scores 0.000:"
    assert lines[6].endswith("What is 1 + 1?'")
    assert len(lines[6]) < 200
    assert lines[7:9] == ["    answered: 'I do not know.'", "    expected: '2'"]


def test_answers_without_scores_of_their_own_are_shown_too(tmp_path: Path) -> None:
    store = TrialStore(tmp_path / "run")
    store.append(specialist("math", 0.0), [{**item(number), "score": None} for number in range(2)])
    lines = explanation(store.folder, store.trials())
    assert lines[1] == "math, task sums, item 0, scores –:"


@pytest.mark.parametrize(
    ("damage", "said"), [(Path.unlink, "are not on disk"), (lambda file: file.write_text("no"), "cannot be shown")]
)
def test_answers_that_cannot_be_read_do_not_hide_the_scores(
    store: TrialStore, damage: Callable[[Path], None], said: str
) -> None:
    damage(RunFolder(store.folder).items_file("digest of math", "validation"))
    first, second = explanation(store.folder, store.trials())
    assert "math 0.000" in first
    assert second.startswith(f"math: its answers {said}")


@pytest.mark.parametrize("changed", ["digest", "items_digest"])
def test_a_run_whose_models_or_items_have_changed_is_refused_and_keeps_its_scores(changed: str) -> None:
    items = items_digest([])
    base = Trial("base", "base", "validation", "b", items)
    own = replace(specialist("math", 0.5), digest="m", items_digest=items)
    models = SimpleNamespace(
        base=SimpleNamespace(digest=lambda: "b"), specialists={"math": SimpleNamespace(digest=lambda: "m")}
    )
    ready: Any = SimpleNamespace(models=models, tasks={"validation": []})
    _check_same_models(Path("run"), [base, own], ready)
    for trial in (base, own):
        with pytest.raises(InputError, match=f"run: {trial.name} was scored on validation with other weights or items"):
            _check_same_models(Path("run"), [base, own, replace(trial, **{changed: "x"})], ready)  # type: ignore[arg-type]


def test_only_a_report_that_was_written_counts_as_written(store: TrialStore) -> None:
    run, view = RunFolder(store.folder), LiveView("x", 1, show=False)
    assert _keep_what_is_there(InputError("wrong"), run, store, view)
    run.report_file.unlink()
    run.report_file.mkdir()
    assert not _keep_what_is_there(InputError("wrong"), run, store, view)


def test_why_a_run_stopped_is_in_its_log_in_one_line(store: TrialStore) -> None:
    run, view = RunFolder(store.folder), LiveView("x", 1, show=False)
    with log_to(run.log_file, None):
        _keep_what_is_there(InputError("suite: wrong"), run, store, view)
    [line] = run.log_file.read_text().splitlines()
    assert line.endswith("the run stopped: suite: wrong")


def test_a_report_can_be_written_of_specialists_alone(store: TrialStore) -> None:
    assert write_report(store.folder).stat().st_size > 0


def test_once_the_search_has_begun_no_specialist_ends_it(store: TrialStore) -> None:
    assert [one.name for one in unusable_specialists(store.trials())] == ["math"]
    assert unusable_specialists([*store.trials(), made_up_trials(1, test=False)[-1]]) == []


def sweep(**changes: Any) -> Sweep:
    content: Mapping[str, Any] = {
        "name": "x",
        "suite": "smollm2-mini",
        "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}},
    }
    return Sweep.model_validate({**content, **changes})


def test_where_a_specialist_scores_nothing_a_changed_sweep_begins_the_run_again(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", sweep(), resume=False) as run:
        TrialStore(run.path).append(specialist("math", 0.0), [item(0)])
        study = run.study_name(sweep())
    changed = sweep(evaluation={"domains": ["coding"]})
    with locked_run(tmp_path / "run", changed, resume=True) as run:
        assert TrialStore(run.path).trials() == []
        assert not run.items_folder.exists() or not any(run.items_folder.iterdir())
        assert Sweep.from_yaml(run.sweep_file).evaluation.domains == ["coding"]
        assert run.study_name(changed) != study


def test_an_unchanged_sweep_keeps_what_was_scored(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", sweep(), resume=False) as run:
        TrialStore(run.path).append(specialist("math", 0.3), [item(0)])
        study = run.study_name(sweep())
    with locked_run(tmp_path / "run", sweep(), resume=True) as run:
        assert len(TrialStore(run.path).trials()) == 1
        assert run.study_name(sweep()) == study


def test_a_changed_sweep_throws_no_usable_score_away(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", sweep(), resume=False) as run:
        TrialStore(run.path).append(specialist("math", 0.3), [item(0)])
    with (
        pytest.raises(InputError, match=r"the run was begun with search\.seed = 0, now it is 5"),
        locked_run(tmp_path / "run", sweep(search={"seed": 5}), resume=True),
    ):
        pass
    assert len(TrialStore(run.path).trials()) == 1


def test_once_the_search_has_begun_a_changed_sweep_is_refused(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", sweep(), resume=False) as run:
        TrialStore(run.path).append(replace(made_up_trials(1, test=False)[-1], number=0))
    with pytest.raises(InputError, match=r"the run was begun with search\.seed = 0, now it is 5"):
        check_run_folder(tmp_path / "run", sweep(search={"seed": 5, "trials": 25}), resume=True)
