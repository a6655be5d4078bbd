"""How good the candidates of a sampler are, on a function that was fitted to a finished run.

    python benchmarks/proposals.py RUN_DIR [--groups N] [--methods N] [--free] [--noise X] [--seeds N] [SAMPLER ...]

The function goes smoothly through the validation scores of the run's candidates, those of the method that has most; how
smooth it is, is what predicts each candidate best from the others. A sampler sees it with noise. Regret is the highest
value of the function minus that of the candidate whose noisy score is best. With --groups each coefficient is searched
as that many, of groups of layers, which weigh differently and lose where they are far apart. With --methods there are
others beside the run's method: the same function, moved, raised or lowered by chance, otherwise for each seed. With
--free searches begin with what follows from the task vectors of the run's models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from fitted_function import FittedFunction, Floats, shares_of_ranges

from mergebench_ray.bank import Bank
from mergebench_ray.commands.models import resolve_models
from mergebench_ray.config import Range, Sweep
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import read_trials
from mergebench_ray.search.samplers import OWN_ERROR, search_sampler
from mergebench_ray.search.space import Space
from mergebench_ray.search.starts import free_proposals

SAMPLERS = ("RandomSampler", "CmaEsSampler", "TPESampler", "auto")
TOGETHER = {"TPESampler": {"multivariate": True, "group": True}}  # of several methods
OTHERS: dict[str, dict[str, Any]] = {  # what they have beside the run's coefficients
    "ties": {"density": {"low": 0.3, "high": 0.95}},
    "model_soup": {},
    "dare": {"p": {"low": 0.1, "high": 0.9}},
    "consensus": {"k": {"choices": [1, 2, 3]}, "mu": {"low": 0.0, "high": 0.6}},
}
WITHOUT_NUMBERS = "model_soup"
AFTER = (20, 50)
APART = 0.5  # how much is lost, for a variance between groups of layers in ranges squared


class Surrogate:
    """What a candidate of a run's most tried method would score.

    Args:
        run: folder of the run.
        groups: of layers, each with a number of its own.
    """

    free: Mapping[str, dict[str, Any]] = {}

    def __init__(self, run: Path, groups: int) -> None:
        found = [t for t in read_trials(run) if (t.role, t.split) == ("candidate", "validation")]
        methods = [trial.method for trial in found]
        self.method = max(set(methods), key=lambda name: (methods.count(name), name))
        trials = {t.digest: t for t in found if t.method == self.method and t.normalised_average is not None}
        sweep = Sweep.from_yaml(RunFolder(run).sweep_file)
        self._ranges = {key: one for key, one in sweep.methods[self.method].items() if isinstance(one, Range)}
        self.specialists = sorted(next(iter(trials.values())).coefficients)
        points = np.array([self._point(t.parameters) for t in trials.values()])
        values = np.array([t.normalised_average for t in trials.values()])
        self._values, self._dimensions = FittedFunction(points, values), points.shape[1]
        self.explained = self._values.explained
        self.candidates, self._groups = len(trials), groups
        self._shares = np.random.default_rng(0).dirichlet(np.full(groups, 4.0))
        self.best = self._highest_of_run = self._highest(points.shape[1])
        wider = {
            key: one.model_copy(update={"layer_groups": groups}) if one.per == "specialist" else one
            for key, one in self._ranges.items()
        }
        content = {self.method: {**sweep.methods[self.method], **wider}}
        search = sweep.search.model_copy(update={"points_to_evaluate": []})
        self.sweep = sweep.model_copy(update={"methods": content, "search": search})
        self.space = Space(self.sweep, self.specialists, None)

    def _point(self, parameters: Mapping[str, Any]) -> list[float]:
        return shares_of_ranges(parameters, self._ranges, self.specialists)

    def value(self, method: str, parameters: Mapping[str, Any]) -> float:
        """What a candidate would score without noise."""
        means, apart = {}, 0.0
        for key, value in parameters.items():
            if isinstance(value, Mapping) and self._groups > 1:
                numbers = np.array([value[name] for name in self.specialists])
                means[key] = dict(zip(self.specialists, numbers @ self._shares, strict=True))
                shares = numbers / (self._ranges[key].high - self._ranges[key].low)
                apart += float(np.mean(shares.var(axis=1)))
            else:
                means[key] = value
        return float(self._values(np.array([self._point(means)]))[0]) - APART * apart

    def _highest(self, dimensions: int) -> float:
        random = np.random.default_rng(0)
        points = random.random((20_000, dimensions))
        for radius in (0.1, 0.05, 0.02, 0.01, 0.005):
            kept = points[np.argsort(-self._values(points))[:50]]
            near = np.clip(kept.repeat(100, 0) + radius * random.standard_normal((5000, dimensions)), 0, 1)
            points = np.vstack([kept, near])
        return float(self._values(points).max())

    def search(self, sampler: str, seed: int, noise: float) -> list[float]:
        """Regret after as many candidates as `AFTER` says, of one search."""
        given = TOGETHER.get(sampler, {}) if len(self.space.methods) > 1 else {}
        options = self.sweep.search.model_copy(update={"sampler": sampler, "sampler_options": given, "seed": seed})
        study = optuna.create_study(direction="maximize", sampler=search_sampler(options, self.space))
        for suggestion in self.free.values():
            study.enqueue_trial(suggestion)
        random = np.random.default_rng(seed)
        true, seen = [], []
        for _ in range(AFTER[-1]):
            trial = study.ask()
            suggestion = {**self.space.suggest(trial), **trial.params}
            true.append(self.value(*self.space.candidate(suggestion)))
            seen.append(true[-1] + noise * random.standard_normal())
            trial.set_user_attr(OWN_ERROR, noise)
            study.tell(trial, seen[-1])
        return [self.best - true[int(np.argmax(seen[:count]))] for count in AFTER]


class SeveralMethods(Surrogate):
    """The same for several methods, of which nobody knows which is best.

    Args:
        run: folder of the run.
        methods: how many.
        seed: of what the others are.
    """

    def __init__(self, run: Path, methods: int, seed: int) -> None:
        super().__init__(run, 1)
        names = [self.method, *[name for name in OTHERS if name != self.method][: methods - 1]]
        coefficients = self.sweep.methods[self.method]
        content = {name: OTHERS[name] | ({} if name == WITHOUT_NUMBERS else coefficients) for name in names[1:]}
        self.sweep = Sweep.model_validate(self.sweep.model_dump() | {"methods": {self.method: coefficients} | content})
        self.space = Space(self.sweep, self.specialists, None)
        random = np.random.default_rng([seed, 1])
        dimensions = self._dimensions
        self._moved = {name: 0.12 * random.standard_normal(dimensions) for name in names}
        self._raised = {name: 0.03 * random.standard_normal() for name in names}
        self._best_of_others = {name: {key: random.random() for key in OTHERS.get(name, {})} for name in names}
        self.best = max(self._best_of(name, dimensions) for name in names)

    def _best_of(self, method: str, dimensions: int) -> float:
        if method == WITHOUT_NUMBERS:
            return self.value(method, {})
        random = np.random.default_rng(0)
        points = random.random((20_000, dimensions))
        for radius in (0.1, 0.03, 0.01):
            kept = points[np.argsort(-self._of(method, points))[:50]]
            near = np.clip(kept.repeat(100, 0) + radius * random.standard_normal((5000, dimensions)), 0, 1)
            points = np.vstack([kept, near])
        return float(self._of(method, points).max())

    def _of(self, method: str, points: Floats) -> Floats:
        return self._values(np.clip(points + self._moved[method], 0, 1)) + self._raised[method]

    def value(self, method: str, parameters: Mapping[str, Any]) -> float:
        """What a candidate would score without noise."""
        if method == WITHOUT_NUMBERS:
            return self._highest_of_run - 0.04 + self._raised[method]
        value = float(self._of(method, np.array([self._point(parameters)]))[0])
        for key, best in self._best_of_others[method].items():
            one = self.sweep.methods[method][key]
            if isinstance(one, Range):
                value -= 0.15 * ((parameters[key] - one.low) / (one.high - one.low) - best) ** 2
            else:
                value -= 0.02 * (parameters[key] != 1 + int(3 * best))
        return value


def free_of(run: Path, surrogate: Surrogate) -> Mapping[str, dict[str, Any]]:
    """What follows from the weights of a run's models, for a search of as many candidates as `AFTER` says."""
    sweep = Sweep.from_yaml(RunFolder(run).sweep_file)
    models = resolve_models(*sweep.model_references(sweep.load_suite()))
    search = surrogate.sweep.search.model_copy(update={"trials": AFTER[-1]})
    bank = Bank.load(models.base, models.specialists, in_process=True)
    try:
        return free_proposals(surrogate.sweep.model_copy(update={"search": search}), surrogate.space, bank)
    finally:
        bank.close()


def main() -> None:
    """Print a row for each sampler."""
    parser = argparse.ArgumentParser(description="How good the candidates of a sampler are.")
    parser.add_argument("run", type=Path)
    parser.add_argument("samplers", nargs="*", default=SAMPLERS)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--methods", type=int, default=1)
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--noise", type=float, default=0.025)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_intermixed_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    surrogate, seeds = Surrogate(options.run, options.groups), range(options.seeds)
    several = options.methods > 1
    if options.free:
        Surrogate.free = free_of(options.run, surrogate)
    searched = [SeveralMethods(options.run, options.methods, seed) if several else surrogate for seed in seeds]
    print(
        f"{surrogate.method}, {surrogate.candidates} candidates, {surrogate.space.num_numbers} numbers; "
        f"{surrogate.explained:.0%} of the variance predicted; highest {surrogate.best:.3f}\n"
    )
    print(f"| sampler | {' | '.join(f'regret after {count}' for count in AFTER)} | ms a candidate |")
    print("| --- |" + " --- |" * (len(AFTER) + 1))
    for sampler in options.samplers:
        started = time.perf_counter()
        regrets = np.array([one.search(sampler, seed, options.noise) for seed, one in enumerate(searched)])
        each = (time.perf_counter() - started) / regrets.shape[0] / AFTER[-1]
        errors = regrets.std(axis=0, ddof=1) / np.sqrt(len(regrets))
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(regrets.mean(axis=0), errors, strict=True)]
        print(f"| {sampler} | {' | '.join(cells)} | {1e3 * each:.0f} |", flush=True)


if __name__ == "__main__":
    main()
