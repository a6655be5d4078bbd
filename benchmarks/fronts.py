"""How good the fronts of samplers are, on functions that were fitted to a finished run.

    python benchmarks/fronts.py RUN_DIR [--noise X] [--seeds N] [--candidates N] [SAMPLER ...]

For each domain, a function goes smoothly through what the run's candidates, those of the method that has most, reach of
the specialist; how smooth it is, is what predicts each candidate best from the others. A sampler sees all of them with
noise. A front is as good as the volume in which each point is exceeded by one of its candidates in every domain, above
what the base reaches, without noise: given as a share of what 300 random candidates reach. "Seen" is the front as the
noisy scores show it, "all" the front of all candidates that were tried.
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

from mergebench_ray.config import Range, Sweep
from mergebench_ray.runs.front import non_dominated
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial, read_trials
from mergebench_ray.search.samplers import OWN_ERROR, search_sampler
from mergebench_ray.search.space import Space

SAMPLERS = ("RandomSampler", "NSGAIISampler", "NSGAIIISampler", "TPESampler", "auto")
"""Optuna's GPSampler takes minutes a candidate with five objectives, and says so."""
OPTIONS: Mapping[str, dict[str, Any]] = {
    "NSGAIISampler": {"population_size": 12},  # of their 50, sixty candidates are hardly a second generation
    "NSGAIIISampler": {"population_size": 12},
    "TPESampler": {"multivariate": True},
}
RANDOM = 300
POINTS = 200_000  # at which it is seen whether a front exceeds them


class Surfaces:
    """What a candidate of a run's most tried method would reach of each specialist.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        trials = [one for one in read_trials(run) if one.split == "validation"]
        specialists = {one.name: one.domains[one.name].score for one in trials if one.role == "specialist"}
        self.domains = sorted(specialists)
        found = [one for one in trials if one.role == "candidate"]
        methods = [trial.method for trial in found]
        self.method = max(set(methods), key=lambda name: (methods.count(name), name or "")) or ""
        self.trials = [one for one in found if one.method == self.method]
        sweep = Sweep.from_yaml(RunFolder(run).sweep_file)
        self._ranges = {key: one for key, one in sweep.methods[self.method].items() if isinstance(one, Range)}
        self.specialists = sorted(self.trials[0].coefficients)
        objective = list(self.domains)
        search = sweep.search.model_copy(update={"points_to_evaluate": [], "objective": objective, "constraints": {}})
        methods_kept = {self.method: sweep.methods[self.method]}
        self.sweep = sweep.model_copy(update={"methods": methods_kept, "search": search})
        self.space = Space(self.sweep, self.specialists, None)

        def shares(trial: Trial) -> list[float]:
            return [trial.domains[domain].score / specialists[domain] for domain in self.domains]

        self.floor = np.array(shares(next(one for one in trials if one.role == "base")))
        points = np.array([self._point(one.parameters) for one in self.trials])
        values = np.array([shares(one) for one in self.trials])
        self._fitted = [FittedFunction(points, column) for column in values.T]
        self.explained = [one.explained for one in self._fitted]
        self._probes: Floats | None = None

    def _point(self, parameters: Mapping[str, Any]) -> list[float]:
        return shares_of_ranges(parameters, self._ranges, self.specialists)

    def values(self, parameters: Mapping[str, Any]) -> Floats:
        """What a candidate reaches without noise, (domains,)."""
        point = np.array([self._point(parameters)])
        return np.array([float(one(point)[0]) for one in self._fitted])

    def search(self, sampler: str, seed: int, noise: float, count: int) -> tuple[Floats, Floats]:
        """What the candidates of one search reach, (count, domains) each: without noise, and as it was seen."""
        options = {"sampler": sampler, "sampler_options": OPTIONS.get(sampler, {}), "seed": seed}
        search = self.sweep.search.model_copy(update=options)
        domains = len(self.domains)
        study = optuna.create_study(directions=["maximize"] * domains, sampler=search_sampler(search, self.space))
        random = np.random.default_rng(seed)
        true = np.empty((count, domains))
        seen = np.empty((count, domains))
        for number in range(count):
            trial = study.ask()
            suggestion = {**self.space.suggest(trial), **trial.params}
            true[number] = self.values(self.space.candidate(suggestion)[1])
            seen[number] = true[number] + noise * random.standard_normal(domains)
            trial.set_user_attr(OWN_ERROR, [noise] * domains)
            study.tell(trial, seen[number].tolist())
        return true, seen

    def volumes(self, true: Floats, seen: Floats) -> tuple[float, float]:
        """Of the front that was seen and of all candidates, as shares of the box between base and the best known."""
        assert self._probes is not None
        return exceeded(self._probes, true[non_dominated(seen)]), exceeded(self._probes, true)

    def measure_between(self, highest: Floats) -> None:
        """Take volumes between what the base reaches and this, (domains,)."""
        random = np.random.default_rng(0).random((POINTS, len(self.domains)))
        self._probes = self.floor + random * np.maximum(highest - self.floor, 1e-9)


def exceeded(probes: Floats, values: Floats) -> float:
    """Share of the probes that one of the candidates exceeds in everything."""
    found = np.zeros(len(probes), dtype=bool)
    for one in values[non_dominated(values)]:
        found |= (probes <= one).all(axis=1)
    return float(found.mean())


def main() -> None:
    """Print a row for each sampler."""
    parser = argparse.ArgumentParser(description="How good the fronts of samplers are.")
    parser.add_argument("run", type=Path)
    parser.add_argument("samplers", nargs="*", default=SAMPLERS)
    parser.add_argument("--noise", type=float, default=0.056, help="in a domain: 0.025 in the mean of five")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=60)
    options = parser.parse_intermixed_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    surfaces = Surfaces(options.run)
    many = [surfaces.search("RandomSampler", 1000 + seed, options.noise, RANDOM) for seed in range(options.seeds)]
    surfaces.measure_between(np.max([true.max(axis=0) for true, _ in many], axis=0) * 1.05)
    of_random = np.mean([surfaces.volumes(*one) for one in many], axis=0)
    predicted = ", ".join(f"{name} {share:.0%}" for name, share in zip(surfaces.domains, surfaces.explained))
    print(
        f"{surfaces.method}, {len(surfaces.trials)} candidates, {surfaces.space.num_numbers} numbers; variance "
        f"predicted: {predicted}\n"
    )
    print(f"| sampler, {options.candidates} candidates | seen | all | on the front | ms a candidate |")
    print("| --- | --- | --- | --- | --- |")
    for sampler in options.samplers:
        started = time.perf_counter()
        found = [surfaces.search(sampler, seed, options.noise, options.candidates) for seed in range(options.seeds)]
        each = (time.perf_counter() - started) / options.seeds / options.candidates
        shares = np.array([surfaces.volumes(*one) for one in found]) / of_random
        errors = shares.std(axis=0, ddof=1) / np.sqrt(len(shares))
        cells = [f"{mean:.1%} ± {error:.1%}" for mean, error in zip(shares.mean(axis=0), errors, strict=True)]
        size = np.mean([non_dominated(seen).sum() for _, seen in found])
        print(f"| {sampler} | {' | '.join(cells)} | {size:.0f} | {1e3 * each:.0f} |", flush=True)


if __name__ == "__main__":
    main()
