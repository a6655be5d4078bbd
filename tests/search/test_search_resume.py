"""A search that goes on after everything was killed has the table of one that nobody disturbed."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from memory_storage import memory_storage
from mergebench_ray.config import SearchOptions, Sweep
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.race_scheduler import RaceScheduler, StudySearch
from mergebench_ray.search.samplers import search_sampler
from mergebench_ray.search.space import OPTUNA_NUMBER, Space
from mergebench_ray.search.study import RunStudy, open_storage
from mergebench_ray.search.trainable import METRIC

OBJECTIVE = NormalisedAverage(References({}))
TRIALS = 12
POINTS = [{"scaling_coef": 0.4}, {"scaling_coef": {"coding": 0.1, "law": 0.2, "math": 0.3}}]
RANGE = {"low": 0.0, "high": 1.0, "per": "specialist"}
GRID = {f"task_arithmetic.scaling_coef.{name}": [0.25, 0.75] for name in ("coding", "law", "math")}
SAMPLERS: dict[str, dict[str, Any]] = {
    "auto": {},
    "TPESampler": {"n_startup_trials": 3},
    "GPSampler": {"n_startup_trials": 9},
    "CmaEsSampler": {"popsize": 4},
    "RandomSampler": {},
    "QMCSampler": {"scramble": True},
    "NSGAIISampler": {"population_size": 2},
    "GridSampler": {"search_space": GRID, "seed": 3},
}
# Numbers that a sampler draws together are drawn again, but Optuna's GP takes what it drew for one of another trial.
RESUMABLE_WITHIN_A_PROPOSAL = sorted(set(SAMPLERS) - {"GPSampler"})

Table = list[tuple[int, dict[str, Any], float | None]]

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Search:
    """A search without Ray: a study that one process after another opens; in memory, as files would take minutes."""

    def __init__(self, folder: Path, sampler: str) -> None:
        search = {
            "sampler": sampler,
            "sampler_options": SAMPLERS[sampler],
            "points_to_evaluate": [] if sampler == "GridSampler" else POINTS,
        }
        methods = {"task_arithmetic": {"scaling_coef": RANGE}}
        content = {"name": "x", "suite": "smollm2-mini", "methods": methods, "search": search}
        self.sweep = Sweep.model_validate(content)
        self.space = Space(self.sweep, ["coding", "law", "math"], None)
        self.run = RunFolder(folder)
        self.storage = memory_storage()
        self.on_disk: list[Trial] = []
        self.begin()

    def begin(self) -> None:
        """A new process: only what the study and the run's folder hold is known."""
        options = self.sweep.search
        own = RunStudy(self.storage, "x", self.run, OBJECTIVE)
        own.reconcile(self.on_disk)
        own.queue(self.space.points(options.points_to_evaluate))
        self.study = own.study
        self.study.sampler = search_sampler(options, self.space)

    def propose(self) -> tuple[optuna.Trial, dict[str, Any]]:
        trial = self.study.ask()
        self.space.suggest(trial)
        return trial, trial.params

    def keep(self, trial: optuna.Trial) -> float:
        value = -sum((number - 0.3) ** 2 for number in trial.params.values())
        row = Trial("candidate", "x", "validation", "d", "i", normalised_average=value, optuna_number=trial.number)
        self.on_disk.append(row)
        return value

    def table(self) -> Table:
        assert all(trial.state == TrialState.COMPLETE for trial in self.study.get_trials())
        return [(trial.number, trial.params, trial.value) for trial in self.study.get_trials()]


@pytest.fixture(scope="module", params=SAMPLERS)
def calm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Table]:
    """A sampler, and the table of its calm search."""
    sampler: str = request.param
    search = Search(tmp_path_factory.mktemp("calm"), sampler)
    for _ in range(TRIALS):
        trial, _ = search.propose()
        search.study.tell(trial, search.keep(trial))
    return sampler, search.table()


@pytest.mark.slow
def test_killed_while_any_candidate_is_under_way(tmp_path: Path, calm: tuple[str, Table]) -> None:
    sampler, table = calm
    search = Search(tmp_path, sampler)
    for _ in range(TRIALS):
        search.propose()
        search.begin()
        trial, _ = search.propose()
        search.study.tell(trial, search.keep(trial))
    assert search.table() == table


@pytest.mark.slow
def test_killed_after_any_candidate_before_the_study_heard_of_it(tmp_path: Path, calm: tuple[str, Table]) -> None:
    sampler, table = calm
    search = Search(tmp_path, sampler)
    for _ in range(TRIALS):
        trial, _ = search.propose()
        search.keep(trial)
        search.begin()
    assert search.table() == table


@pytest.mark.slow
@pytest.mark.parametrize("calm", RESUMABLE_WITHIN_A_PROPOSAL, indirect=True)
def test_killed_while_any_candidate_is_proposed(tmp_path: Path, calm: tuple[str, Table]) -> None:
    sampler, table = calm
    search = Search(tmp_path, sampler)
    for _ in range(TRIALS):
        search.study.ask().suggest_float("task_arithmetic.scaling_coef.coding", 0, 1)
        search.begin()
        trial, _ = search.propose()
        search.study.tell(trial, search.keep(trial))
    assert search.table() == table


class OneAfterAnother:
    """Stands for scheduler and race: every candidate is wanted, and `values` says what some came to."""

    def __init__(self) -> None:
        self.values: dict[int, float | None] = {}
        self.begun: set[int] = set()

    def wants(self) -> bool:
        return True

    def has_all(self) -> bool:
        return False

    def proposed(self, number: int) -> None:
        pass

    def noted(self) -> AbstractContextManager[None]:
        return nullcontext()

    def has(self, number: int) -> bool:
        return number in self.values or number in self.begun


def searcher(folder: Path) -> tuple[StudySearch, OneAfterAnother]:
    storage = open_storage(RunFolder(folder), SearchOptions())
    others: Any = OneAfterAnother()

    def suggest(trial: optuna.Trial) -> dict[str, Any]:
        return {"a": trial.suggest_float("a", 0, 1), OPTUNA_NUMBER: trial.number}

    study: Any = {"storage": storage, "study_name": "x"}
    return StudySearch(others, others, lambda: False, suggest, metric=METRIC, mode="max", **study), others


def states(folder: Path) -> list[TrialState]:
    own = RunStudy(open_storage(RunFolder(folder), SearchOptions()), "x", RunFolder(folder), OBJECTIVE)
    return [trial.state for trial in own.study.get_trials()]


@pytest.mark.parametrize("told", [{}, {"error": True}, {"result": {METRIC: 0.5, "done": True}}], ids=str)
def test_a_trial_that_tune_ends_before_it_is_at_its_end_stays_under_way(tmp_path: Path, told: dict[str, Any]) -> None:
    search, _ = searcher(tmp_path)
    search.suggest("t0")
    search.on_trial_complete("t0", **told)
    assert states(tmp_path) == [TrialState.RUNNING]


def test_a_trial_at_its_end_is_told_and_has_failed_without_a_value(tmp_path: Path) -> None:
    search, others = searcher(tmp_path)
    for number, value in enumerate((0.5, None)):
        search.suggest(f"t{number}")
        others.values[number] = value
        search.on_trial_complete(f"t{number}")
    assert states(tmp_path) == [TrialState.COMPLETE, TrialState.FAIL]


def test_a_candidate_that_came_to_its_end_before_its_trial_came_again_is_told_at_once(tmp_path: Path) -> None:
    search, others = searcher(tmp_path)
    others.values[0] = 0.5
    assert search.suggest("t0")[OPTUNA_NUMBER] == 1
    assert states(tmp_path) == [TrialState.COMPLETE, TrialState.RUNNING]


def test_several_objectives_reach_the_study_in_their_order(tmp_path: Path) -> None:
    storage = open_storage(RunFolder(tmp_path), SearchOptions())
    study = optuna.create_study(storage=storage, study_name="x", directions=["maximize", "minimize"])
    others: Any = OneAfterAnother()

    def suggest(trial: optuna.Trial) -> dict[str, Any]:
        return {"a": trial.suggest_float("a", 0, 1), OPTUNA_NUMBER: trial.number}

    several: Any = {"metric": ["first", "second"], "mode": ["max", "min"], "storage": storage, "study_name": "x"}
    search = StudySearch(others, others, lambda: False, suggest, **several)
    for number, values in enumerate(([0.5, 0.25], None)):
        search.suggest(f"t{number}")
        others.values[number] = values
        search.on_trial_complete(f"t{number}")
    assert [one.values for one in study.trials] == [[0.5, 0.25], None]
    assert [one.state for one in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]


class ThreeCandidates:
    """A search of a space that has no more, in which every candidate is at its end at once."""

    def __init__(self, folder: Path) -> None:
        self.storage = open_storage(RunFolder(folder), SearchOptions())
        self.others: Any = OneAfterAnother()
        self.wanted = 4
        self.others.wants = lambda: self.wanted > 0
        self.others.no_more = lambda: setattr(self, "wanted", 0)
        methods = {"ties": {"merge_func": {"choices": ["sum", "mean", "max"]}}}
        content = {"name": "x", "suite": "smollm2-mini", "methods": methods}
        sweep = Sweep.model_validate({**content, "search": {"sampler": "RandomSampler"}})
        space = Space(sweep, ["coding", "math"], None)
        sampler = search_sampler(sweep.search, space)
        study: Any = {"storage": self.storage, "study_name": "x", "sampler": sampler}
        self.search = StudySearch(
            *(self.others, self.others, lambda: sampler.all_tried(self.study) is not None, space.suggest),
            **{"metric": METRIC, "mode": "max", **study},
        )

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="x", storage=self.storage)

    def suggest(self, trial_id: str, *, ends: bool) -> int | None:
        """Number of the candidate that is proposed."""
        suggestion = self.search.suggest(trial_id)
        if suggestion is None:
            return None
        number = int(suggestion[OPTUNA_NUMBER])
        if ends:
            self.others.values[number] = 0.5
            self.search.on_trial_complete(trial_id)
        return number


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_proposed_again_is_no_candidate_whether_the_first_waits_or_not(tmp_path: Path, ends: bool) -> None:
    three = ThreeCandidates(tmp_path)
    given = [three.suggest(name, ends=ends) for name in ("t0", "t1", "t2")]
    trials = three.study.trials
    again = [one for one in trials if "same_as" in one.user_attrs]
    assert len(again) == len(trials) - 3 > 0
    assert {one.state for one in again} == {TrialState.FAIL}
    assert all(trials[one.user_attrs["same_as"]].params == one.params for one in again)
    assert len({str(trials[number or 0].params) for number in given}) == 3


def test_a_search_ends_where_nothing_is_left_to_try(tmp_path: Path) -> None:
    three = ThreeCandidates(tmp_path)
    for name in ("t0", "t1", "t2"):
        three.suggest(name, ends=True)
    assert three.suggest("t3", ends=True) is None
    assert three.wanted == 0


def test_a_candidate_that_somebody_asked_for_twice_counts_twice(tmp_path: Path) -> None:
    search, others = searcher(tmp_path)
    study = optuna.load_study(study_name="x", storage=open_storage(RunFolder(tmp_path), SearchOptions()))
    for number in range(2):
        study.enqueue_trial({"a": 0.25})
        assert search.suggest(f"t{number}")[OPTUNA_NUMBER] == number
        others.values[number] = 0.5
        search.on_trial_complete(f"t{number}")
    assert states(tmp_path) == [TrialState.COMPLETE] * 2


def test_a_candidate_that_has_begun_is_not_given_back_for_being_like_another(tmp_path: Path) -> None:
    search, others = searcher(tmp_path)
    study = optuna.load_study(study_name="x", storage=open_storage(RunFolder(tmp_path), SearchOptions()))
    study.enqueue_trial({"a": 0.25})
    search.suggest("t0")
    others.values[0] = 0.5
    search.on_trial_complete("t0")
    study.ask().suggest_float("a", 0.25, 0.25)
    study._storage.set_trial_state_values(study.trials[1]._trial_id, TrialState.WAITING)
    others.begun.add(1)
    assert search.suggest("t1")[OPTUNA_NUMBER] == 1
    assert states(tmp_path) == [TrialState.COMPLETE, TrialState.RUNNING]


def test_tune_can_save_its_own_state_beside_the_study(tmp_path: Path) -> None:
    search, _ = searcher(tmp_path)
    search.save_to_dir(str(tmp_path), "session")
    assert states(tmp_path) == []


def test_what_goes_wrong_where_tune_passes_over_it_is_raised_by_whatever_it_calls_next() -> None:
    nothing: Any = None
    scheduler = RaceScheduler(nothing, nothing, nothing, 1, 1, nothing)
    with pytest.raises(OSError, match="No space left"), scheduler.noted():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        scheduler.choose_trial_to_run(nothing)
