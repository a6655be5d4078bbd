"""The race in Ray Tune: which trial runs, waits or stops; and which candidate is proposed when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.searcher import Searcher

from mergebench_ray.config import Recipe
from mergebench_ray.errors import StoppedError
from mergebench_ray.search.racing import Racing
from mergebench_ray.search.scorer import CandidateScorer
from mergebench_ray.search.space import OPTUNA_NUMBER
from mergebench_ray.search.untried import SAME_AS

_WAIT_SECONDS = 0.5
"""For which a trial's result waits for what it stands for, before Tune asks again and may do something else."""
_LOSSES = 10
"""So many times a trial's actor may be lost, with whatever node it was put on, before it has taken a step."""


class RaceScheduler(TrialScheduler):
    """Runs as many candidates as there are groups of engines; those that the race raises come before new ones.

    A trial that waits holds neither engines nor a process: what it has answered is with the scorer and on disk.

    Args:
        racing: decides.
        scorer: scores what trials stand for.
        recipes: what a candidate is, by its number in the study.
        groups: of engines.
        candidates: how many will come in this sitting, those of earlier ones that are not at their end included.
        on_start: called with the count of candidates before, when one begins.
        pays: whether the budget pays one more beside so many that are being scored; once it does not, none comes.
    """

    def __init__(
        self,
        racing: Racing,
        scorer: CandidateScorer,
        recipes: Callable[[int], Recipe],
        groups: int,
        candidates: int,
        on_start: Callable[[int], None],
        pays: Callable[[int], bool] = lambda _going: True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._racing, self._scorer, self._recipes = racing, scorer, recipes
        self._groups, self._candidates = groups, candidates
        self._on_start, self._pays = on_start, pays
        self._trials: dict[int, TuneTrial] = {}
        self._going: set[int] = set()
        self._waiting: set[int] = set()
        self._chosen: int | None = None
        self._came = 0
        self._losses: Counter[int] = Counter()
        self.error: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it for its own way of resuming, which is not used here.
        return {}

    # What the searcher asks

    def wants(self) -> bool:
        """Whether a further candidate should be proposed now."""
        if self._racing.come_again():
            return True
        if len(self._going) >= self._groups or self._racing.raised or self._came >= self._candidates:
            return False
        if not self._pays(len(self._going)):
            self._candidates = self._came
        return self._came < self._candidates

    def has_all(self) -> bool:
        """Whether nothing is left to do."""
        return self._came == self._candidates and not self._racing.is_open()

    def no_more(self) -> None:
        """No further candidate will come."""
        self._candidates = self._came

    def proposed(self, number: int) -> None:
        """A candidate begins, or comes again."""
        self._came += 1
        if number in self._racing.values:
            return  # another's report ended it before its trial came again
        does = self._racing.begin(number)
        if does == "wait":
            self._waiting.add(number)
        elif does == "go on":
            self._on_start(self._came - 1)
            self._go(number)

    def _go(self, number: int) -> None:
        self._going.add(number)
        self._scorer.begin(number, self._recipes(number))

    # What Tune says

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Note the trial of a candidate; one that waits from an earlier sitting does not run before it is raised."""
        number = trial.config[OPTUNA_NUMBER]
        self._trials[number] = trial
        if number in self._waiting:
            self._waiting.discard(number)
            trial.set_status(TuneTrial.PAUSED)  # Tune files it by that, next
            trial.init_local_path()  # Tune's results want it, also of one that another's report ends

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Have what a step found kept and decided, once it is there."""
        with self.noted():
            return self._stepped(tune_controller, trial)

    def _stepped(self, tune_controller: Any, trial: TuneTrial) -> str:
        number = trial.config[OPTUNA_NUMBER]
        self._losses.pop(number, None)
        step = self._scorer.take(number, _WAIT_SECONDS)
        if step is None:
            return self.CONTINUE
        decided = self._racing.step(number, step.recipe, step.found)
        if decided == "go on":
            self._scorer.begin(number, step.recipe)
            return self.CONTINUE
        self._going.discard(number)
        self._stop_ended(tune_controller)
        if decided == "end":
            return self.STOP
        # Without Tune's checkpoint, which would need a folder that all nodes see.
        tune_controller.pause_trial(trial, should_checkpoint=False)
        return self.NOOP

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The candidate that the race has raised first, as soon as engines are free; Tune starts new ones by itself."""
        with self.noted():
            return self._chosen_next(tune_controller)

    def _chosen_next(self, tune_controller: Any) -> TuneTrial | None:
        self._stop_ended(tune_controller)  # by what another run knew of a candidate that was proposed
        if self._chosen is not None:
            trial = self._trials[self._chosen]
            if trial.status == TuneTrial.PENDING:
                return trial
            self._chosen = None
        raised = self._racing.raised
        if not self._going and not raised and self._came == self._candidates:
            # Here, as nothing reports where all that is left waits from an earlier sitting.
            self._racing.close()
            self._stop_ended(tune_controller)
        if not raised or len(self._going) >= self._groups or self._racing.come_again():
            return None
        self._chosen = raised.popleft()
        self._go(self._chosen)
        return self._trials[self._chosen]

    def _stop_ended(self, tune_controller: Any) -> None:
        """End the trials of candidates that a decision about others has ended."""
        for other in self._racing.ended:
            self._going.discard(other)
            if other in self._trials:
                tune_controller.stop_trial(self._trials[other])
        self._racing.ended.clear()

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Nothing: it was decided here."""

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Nothing: it was decided here."""

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Its actor was lost, and Tune begins the trial again, as often as it may be lost."""
        with self.noted():
            self._losses[number := trial.config[OPTUNA_NUMBER]] += 1
            if self._losses[number] == _LOSSES:
                raise StoppedError(
                    f"Ray Tune's process for candidate {number} was lost {_LOSSES} times in a row before it did "
                    "anything: see Ray's logs on the nodes of the cluster for why its workers end, and go on with the "
                    "same command and --resume"
                )

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep what goes wrong in the block, and raise it in the next: Tune makes text of it, or passes over it."""
        if self.error is not None:
            raise self.error
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def debug_string(self) -> str:
        """For Tune's own table, which is not shown."""
        return "race"

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for Tune's own way of resuming, which is not used here: all is in the run's folder."""
        Path(checkpoint_path).touch()


class StudySearch(OptunaSearch):
    """Tune's Optuna: proposes when the scheduler wants it to, and tells the study what candidates came to.

    A trial that is under way at an interruption stays as it is: it will be tried again.

    Args:
        racing: knows what candidates came to.
        scheduler: knows when another one is wanted.
        is_exhausted: says whether nothing is left to try.
        options: of Tune's Optuna.
    """

    def __init__(
        self,
        racing: Racing,
        scheduler: RaceScheduler,
        is_exhausted: Callable[[], bool],
        *arguments: Any,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._racing, self._scheduler, self._is_exhausted = racing, scheduler, is_exhausted

    def __getstate__(self) -> dict[str, Any]:
        # As the scheduler.
        return {}

    def suggest(self, trial_id: str) -> Any:
        """A candidate; None while there are others to score.

        What the sampler proposes again is no further candidate: another one is asked for.
        """
        with self._scheduler.noted():
            return self._suggested(trial_id)

    def _suggested(self, trial_id: str) -> Any:
        while self._scheduler.wants():
            if self._is_exhausted():
                self._scheduler.no_more()
                break
            suggestion = super().suggest(trial_id)
            assert suggestion is not None
            number = suggestion[OPTUNA_NUMBER]
            if (before := self._same_before(number)) is not None:
                self._give_back(number, before)
                self._ot_trials.pop(trial_id)
                continue
            self._scheduler.proposed(number)
            if number not in self._racing.values:
                return suggestion
            self.on_trial_complete(trial_id)
            self._ot_trials.pop(trial_id)
            self._completed_trials.discard(trial_id)
        return Searcher.FINISHED if self._scheduler.has_all() else None

    def _same_before(self, number: int) -> FrozenTrial | None:
        """The first candidate with the same numbers, whatever came of it.

        None for one that has begun, or that somebody asked for.
        """
        study: Any = self._ot_study
        trials: list[FrozenTrial] = study.get_trials(deepcopy=False)
        if self._racing.has(number) or "fixed_params" in trials[number].system_attrs:
            return None
        return next((one for one in trials[:number] if one.params == trials[number].params), None)

    def _give_back(self, number: int, before: FrozenTrial) -> None:
        """A trial that failed says nothing to samplers; one with the value of the first would draw them there."""
        study: Any = self._ot_study
        optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id).set_user_attr(SAME_AS, before.number)
        study.tell(number, state=TrialState.FAIL)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: what a few items say is not for the study."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study a candidate's objectives, or their estimates; one without a value has failed."""
        with self._scheduler.noted():
            self._tell(trial_id)

    def _tell(self, trial_id: str) -> None:
        number = self._ot_trials[trial_id].number
        if number in self._racing.values:
            value = self._racing.values[number]
            names = self.metric if isinstance(self.metric, list) else [self.metric]
            told = dict(zip(names, value if isinstance(value, list) else [value]))
            OptunaSearch.on_trial_complete(self, trial_id, None if value is None else told, error=value is None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing, for Tune's own way of resuming, which is not used here: the study is on disk."""
        Path(checkpoint_path).touch()
