from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mergebench_ray.config import SearchOptions, Sweep
from mergebench_ray.config.yaml_files import parse_model
from mergebench_ray.errors import InputError
from mergebench_ray.runs.opening import locked_run
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.storage import check_storage
from mergebench_ray.search.study import RunStudy, open_storage

OBJECTIVE = NormalisedAverage(References({}))
METHODS = {"ties": {"density": {"low": 0.1, "high": 0.5}}}


def start_study(folder: Path) -> tuple[RunStudy, optuna.Study]:
    run = RunFolder(folder)
    own = RunStudy(open_storage(run, SearchOptions()), "x", run, OBJECTIVE)
    return own, own.study


def candidate(number: int, value: float | None) -> Trial:
    """A candidate on disk, of the study's trial of that number."""
    scores = {"math": DomainScore(0.5, 0.1, 4), "coding": DomainScore(math.nan, math.nan, 4)}
    return Trial(
        *("candidate", "ties", "validation", "d1", "i"),
        domains=scores,
        normalised_average=value,
        normalised_standard_error=0.02,
        optuna_number=number,
    )


def test_the_study_lies_in_the_runs_folder(tmp_path: Path) -> None:
    _, study = start_study(tmp_path)
    study.tell(study.ask(), 0.5)
    _, study = start_study(tmp_path)
    assert study.best_value == 0.5


def test_a_trial_on_disk_that_the_study_was_not_told_of_is_told(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    trial = study.ask()
    trial.suggest_float("a", 0, 1)
    own.reconcile([candidate(trial.number, 0.7)])
    assert study.trials[0].state == TrialState.COMPLETE
    assert study.trials[0].value == 0.7


def test_a_trial_on_disk_without_a_value_counts_as_failed_and_is_not_tried_again(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    trial = study.ask()
    trial.suggest_float("a", 0, 1)
    for _ in range(2):
        own.reconcile([candidate(trial.number, None)])
        assert [one.state for one in study.trials] == [TrialState.FAIL]


def test_a_trial_that_had_only_begun_is_tried_again_in_its_place_with_the_same_numbers(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    number = study.ask().suggest_float("a", 0, 1)
    study.enqueue_trial({"a": 0.25})
    own.reconcile([])
    own.reconcile([])
    again = study.ask()
    assert (again.number, again.suggest_float("a", 0, 1)) == (0, number)
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING, TrialState.WAITING]


def test_a_queued_point_that_had_not_suggested_yet_is_not_lost(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    own.queue([{"a": 0.25}])
    study.ask()
    own.reconcile([])
    assert study.ask().suggest_float("a", 0, 1) == 0.25


def test_points_are_queued_once_even_where_queueing_was_cut_short(tmp_path: Path) -> None:
    points = [{"a": 0.25}, {"a": 0.5}, {"a": 0.75}]
    start_study(tmp_path)[0].queue(points[:2])
    own, study = start_study(tmp_path)
    own.queue(points)
    own.queue(points)
    assert [study.ask().suggest_float("a", 0, 1) for _ in study.get_trials()] == [0.25, 0.5, 0.75]


def test_candidates_that_follow_from_rules_are_queued_after_the_points_and_say_so(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    own.queue([{"a": 0.25}], {"kappa": {"a": 0.5}})
    own.queue([{"a": 0.25}], {"kappa": {"a": 0.5}})
    assert [study.ask().suggest_float("a", 0, 1) for _ in study.get_trials()] == [0.25, 0.5]
    study.ask()
    assert [own.proposed_by(number) for number in range(3)] == ["sweep", "kappa", "sampler"]


def test_with_room_for_more_candidates_the_rules_are_queued_that_were_not_before(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    rules = {name: {"a": place / 10} for place, name in enumerate(("metagpt", "kappa", "usual"))}
    own.queue([{"a": 0.25}])
    for _ in range(4):
        study.tell(study.ask(), 0.5)
    own, study = start_study(tmp_path)
    for count in (1, 3, 3):
        own.queue([{"a": 0.25}], dict([*rules.items()][:count]))
    assert [own.proposed_by(number) for number in range(len(study.get_trials()))] == [
        *("sweep", "sampler", "sampler", "sampler"),
        *rules,
    ]


def test_a_dashboard_sees_what_the_objective_and_each_trial_is(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    trial = study.ask()
    own.describe(candidate(trial.number, 0.7))
    study.tell(trial, 0.7)
    again, study = start_study(tmp_path)  # as a resumed run does
    again.reconcile([candidate(trial.number, 0.7)])
    assert study.metric_names == ["normalised_average"]
    assert study.user_attrs == {"run": str(tmp_path), "report": str(tmp_path / "report.html")}
    assert study.trials[0].user_attrs == {
        "model": "ties #0",
        "digest": "d1",
        "score.math": 0.5,
        "normalised_standard_error": 0.02,
        "own_standard_error": 0.02,
        "report": str(tmp_path / "report.html"),
    }


def test_a_trial_that_is_told_when_a_run_is_resumed_says_what_it_is_too(tmp_path: Path) -> None:
    own, study = start_study(tmp_path)
    own.reconcile([candidate(study.ask().number, 0.7)])
    assert study.trials[0].user_attrs["model"] == "ties #0"


def test_a_study_that_an_earlier_version_began_goes_on_and_gets_its_names(tmp_path: Path) -> None:
    storage = open_storage(RunFolder(tmp_path), SearchOptions())
    old = optuna.create_study(storage=storage, study_name="x", direction="maximize")
    old.tell(old.ask(), 0.25)
    own, study = start_study(tmp_path)
    own.reconcile([candidate(0, 0.25)])
    assert (study.best_value, study.metric_names) == (0.25, ["normalised_average"])


def shared_run(folder: Path, name: str, storage: str) -> tuple[Sweep, str]:
    """A run's sweep and study in a storage that several share."""
    sweep = parse_model(
        Sweep,
        {"name": "x", "suite": "smollm2-mini", "methods": METHODS, "search": {"storage": storage}},
        "sweep.yaml",
    )
    with locked_run(folder / name, sweep, resume=False) as run:
        return sweep, run.study_name(sweep)


def test_two_runs_of_one_name_in_one_storage_do_not_touch_each_others_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    (sweep, first), (_, second) = (shared_run(tmp_path, name, url) for name in ("a", "b"))
    assert first != second
    study = RunStudy(open_storage(RunFolder(tmp_path), sweep.search), first, RunFolder(tmp_path / "a"), OBJECTIVE).study
    running = study.ask()
    number = running.suggest_float("a", 0, 1)
    # The second run starts, and is resumed, while the first one's trial is being scored.
    for is_new in (True, False):
        other = RunStudy(open_storage(RunFolder(tmp_path), sweep.search), second, RunFolder(tmp_path / "b"), OBJECTIVE)
        assert (not other.study.get_trials()) == is_new
        other.reconcile([])
        other.study.ask()
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING]
    study.tell(running, 0.5)
    assert study.best_params == {"a": number}
    with locked_run(tmp_path / "a", sweep, resume=True) as run:
        assert run.study_name(sweep) == first


def test_a_run_of_before_there_were_ids_finds_its_study(tmp_path: Path) -> None:
    sweep, _ = shared_run(tmp_path, "a", f"sqlite:///{tmp_path / 'shared.db'}")
    (tmp_path / "a" / "run_id").unlink()
    with locked_run(tmp_path / "a", sweep, resume=True) as run:
        assert run.study_name(sweep) == "x"


def test_a_runs_folder_does_not_hold_the_storages_password(tmp_path: Path) -> None:
    sweep, _ = shared_run(tmp_path, "a", "postgresql://user:hunter2@localhost/db")
    for file in (tmp_path / "a").iterdir():
        assert "hunter2" not in file.read_text()
    # The password is given again, and may have changed.
    changed = sweep.model_copy(
        update={"search": sweep.search.model_copy(update={"storage": "postgresql://user:other@localhost/db"})}
    )
    with locked_run(tmp_path / "a", changed, resume=True):
        pass


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///{}/no/such/folder/study.db", "cannot be written|not a folder"),
        ("sqlite://", "in memory"),
        ("sqlite:////dev/zero", "not a regular file"),
        ("sqlite:///{}/text", "file is not a database"),
        ("no-url", "Could not parse"),
        ("redis://host/db", "NoSuchModuleError|redis"),
        ("postgresql://user:hunter2@127.0.0.1:1/db", "refused"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_clear_line_without_its_password(
    tmp_path: Path, url: str, expected: str
) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be looked at " * 20)
    with pytest.raises(InputError, match=expected) as caught:
        check_storage(url.format(tmp_path))
    assert str(caught.value).startswith("search.storage")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["text"]


def test_trying_a_storage_makes_no_file(tmp_path: Path) -> None:
    check_storage(f"sqlite:///{tmp_path}/study.db")
    assert list(tmp_path.iterdir()) == []


def test_opening_a_storage_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"search\.storage"):
        open_storage(RunFolder(tmp_path), SearchOptions(storage=f"sqlite:///{tmp_path}/no/such/folder/study.db"))
