"""The Optuna study of a run on disk: what it shows of each trial, and how it goes on after an interruption."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from mergebench_ray.config import SearchOptions
from mergebench_ray.config.objective import DEFAULT
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, is_known
from mergebench_ray.scores import ObjectiveEstimate, ObjectiveValue
from mergebench_ray.search.objectives.objective import Objective
from mergebench_ray.search.samplers import OWN_ERROR
from mergebench_ray.search.space import METHOD, Space
from mergebench_ray.search.storage import storage_error

PROPOSED_BY = "proposed_by"
"""User attribute of a trial that was queued."""
SWEEP, SAMPLER = "sweep", "sampler"
_UNKNOWN = 10.0  # distance from a constraint, where a score is not known: far, and yet a number that samplers can use


def open_storage(run: RunFolder, options: SearchOptions) -> optuna.storages.RDBStorage:
    """The study's storage: SQLite in the run's folder, or what the sweep names.

    Raises:
        InputError: if the storage cannot be opened.
    """
    url = options.storage or f"sqlite:///{run.study_file}"
    try:
        return optuna.storages.RDBStorage(url)
    except Exception as error:
        raise storage_error(url, error) from error


class RunStudy:
    """A run's study; made if there is none of that name yet.

    Its objectives have names, and it says where its run is.

    Args:
        storage: where it is kept.
        name: its name.
        run: the run's folder.
        objectives: what the search is after.

    Attributes:
        name: its name.
        storage: where it is kept.
        study: Optuna's own.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, name: str, run: RunFolder, *objectives: Objective) -> None:
        self.name, self.storage = name, storage
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[objective.direction for objective in objectives],
            load_if_exists=True,
        )
        self._report = str(run.report_file.resolve())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names([objective.name for objective in objectives])
        self.study.set_user_attr("run", str(run.path.resolve()))
        self.study.set_user_attr("report", self._report)

    def queue(self, points: Sequence[dict[str, Any]], rules: Mapping[str, dict[str, Any]] | None = None) -> None:
        """Queue the candidates that a search begins with; those that it queued before are not queued again.

        Args:
            points: the sweep's, the same as before.
            rules: by the name of the rule that each follows from; with room for more candidates there may be more.
        """
        queued = [one for one in self.study.get_trials(deepcopy=False) if "fixed_params" in one.system_attrs]
        # Earlier versions did not say who proposed a point.
        before = Counter(str(one.user_attrs.get(PROPOSED_BY, SWEEP)) for one in queued)
        missing = {name: point for name, point in (rules or {}).items() if name not in before}
        for name, point in [*((SWEEP, point) for point in points[before[SWEEP] :]), *missing.items()]:
            self.study.enqueue_trial(point, user_attrs={PROPOSED_BY: name})

    def proposed_by(self, number: int) -> str:
        """Who proposed a candidate: `SWEEP`, a rule by its name, or `SAMPLER`."""
        return str(self.study.get_trials(deepcopy=False)[number].user_attrs.get(PROPOSED_BY, SAMPLER))

    def add(self, row: Trial, suggestion: Mapping[str, Any], space: Space) -> None:
        """Add a candidate that another run has scored, under its row's number, unless it was added before."""
        assert row.optuna_number is not None
        if row.optuna_number < len(self.study.get_trials(deepcopy=False)):
            return
        known = space.distributions(str(row.method)) | {METHOD: CategoricalDistribution(space.methods)}
        value = told_value(row)
        trial = optuna.trial.create_trial(
            state=TrialState.FAIL if value is None else TrialState.COMPLETE,
            values=None if value is None else value if isinstance(value, list) else [value],
            params=dict(suggestion),
            distributions={name: known[name] for name in suggestion},
            user_attrs=self._attributes(row) | {"taken_from": row.taken_from},
            constraints=_distances(row),
        )
        self.study.add_trial(trial)

    def describe(self, trial: Trial) -> None:
        """Say what a candidate is and what it scored; before the study is told, since nothing may be added later."""
        assert trial.optuna_number is not None
        trial_id = self._trial_id(trial.optuna_number)
        for key, value in self._attributes(trial).items():
            self.storage.set_trial_user_attr(trial_id, key, value)
        told = optuna.Trial(self.study, trial_id)
        for name, distance in _distances(trial).items():
            if name not in told.constraints:  # of a trial that was described when everything was killed
                told.set_constraint(name, distance)

    def _attributes(self, trial: Trial) -> dict[str, Any]:
        found: dict[str, Any] = {"model": trial.label, "digest": trial.digest, "report": self._report}
        found |= _stopped(trial, trial.estimate) if trial.estimate is not None else _scored(trial)
        # Dashboards read JSON, which has neither NaN nor infinity.
        return {key: value for key, value in found.items() if isinstance(value, str | list) or is_known(value)}

    def reconcile(self, candidates: Iterable[Trial]) -> None:
        """Bring the study in line with the trials on disk, so that none is lost and none repeated.

        A trial that was on disk when everything was killed is told to the study; one without a value counts as failed.
        One that had only begun waits to be tried again: it keeps its number and the numbers that were proposed. So the
        study must be one run's own: what another run is trying would be tried a second time.

        Args:
            candidates: all on disk.
        """
        recorded = {candidate.optuna_number: candidate for candidate in candidates}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in recorded:
                self._tell(recorded[trial.number])
            else:
                self.storage.set_trial_state_values(self._trial_id(trial.number), state=TrialState.WAITING)

    def _tell(self, candidate: Trial) -> None:
        self.describe(candidate)
        assert candidate.optuna_number is not None
        value = told_value(candidate)
        if value is not None:
            self.study.tell(candidate.optuna_number, value)
        else:
            self.study.tell(candidate.optuna_number, state=TrialState.FAIL)

    def _trial_id(self, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(self.name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)


def told_value(candidate: Trial) -> float | list[float] | None:
    """What a study is told of a candidate: its objective, or where the race stopped it, the estimate of that.

    A list of several; None where one is not known.
    """
    several: Mapping[str, ObjectiveValue | ObjectiveEstimate] = candidate.estimates or candidate.objectives
    if len(several) > 1:
        values = [one.value for one in several.values()]
        return [float(value or 0.0) for value in values] if all(map(is_known, values)) else None
    value = candidate.objective.value if candidate.estimate is None else candidate.estimate.value
    return value if is_known(value) else None


def _distances(trial: Trial) -> dict[str, float]:
    """How far a candidate is from keeping each constraint, in numbers that samplers can use."""
    return {name: one if math.isfinite(one) else _UNKNOWN for name, one in trial.constraints.items()}


def _scored(trial: Trial) -> dict[str, Any]:
    attributes: dict[str, Any] = {f"score.{domain}": result.score for domain, result in trial.domains.items()}
    attributes["normalised_standard_error"] = trial.normalised_standard_error
    if len(trial.objectives) > 1:
        attributes["normalised_average"] = trial.normalised_average
        attributes |= {f"standard_error.{name}": one.standard_error for name, one in trial.objectives.items()}
        return attributes | {OWN_ERROR: _plain(trial.objectives.values())}
    if trial.objective_name != DEFAULT:
        attributes["normalised_average"] = trial.normalised_average
        attributes["objective_standard_error"] = trial.objective.standard_error
    return attributes | {OWN_ERROR: trial.objective.own_error}


def _stopped(trial: Trial, estimate: ObjectiveEstimate) -> dict[str, Any]:
    attributes: dict[str, Any] = {"estimated": f"stopped after {estimate.answered} of {estimate.items} items"}
    if trial.estimates:
        attributes |= {f"estimate_error.{name}": one.standard_error for name, one in trial.estimates.items()}
        return attributes | {OWN_ERROR: _plain(trial.estimates.values())}
    return attributes | {"estimate_error": estimate.standard_error, OWN_ERROR: estimate.own_error}


def _plain(several: Iterable[ObjectiveValue | ObjectiveEstimate]) -> list[float | None]:
    """Their own errors as JSON has them."""
    return [one.own_error if is_known(one.own_error) else None for one in several]
