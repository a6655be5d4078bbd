"""What a range that grows costs where the best lies inside it, and brings where it does not.

    python benchmarks/growing_ranges.py [--noise X] [--seeds N] [SAMPLER ...]

Five coefficients of task arithmetic are searched for the top of a smooth hill, which a sampler sees with noise: from
0.1 to 0.6, from there up to 0 to 1.5 where it leads there, and from 0 to 1.5 at once. For each seed the best of each
coefficient is drawn between 0.2 and 0.5 ("inside"), or of two of them between 0.8 and 1.2 ("outside"). Regret is what
the hill is lower at the candidate whose noisy value is best than at its top.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import optuna

from mergebench_ray.config import Sweep
from mergebench_ray.search.samplers import OWN_ERROR, search_sampler
from mergebench_ray.search.space import Space

DOMAINS = ("coding", "instruction", "math", "multilingual", "safety")
BOX = {"low": 0.1, "high": 0.6, "per": "specialist"}
RANGES: dict[str, dict[str, Any]] = {
    "0.1 to 0.6": BOX,
    "0.1 to 0.6, growing": BOX | {"grow_to": [0.0, 1.5]},
    "0 to 1.5": BOX | {"low": 0.0, "high": 1.5},
}
AFTER = (20, 50)
HEIGHT, WIDTH = 0.5, 0.6


def search(ranges: dict[str, Any], sampler: str, best: np.ndarray[Any, Any], noise: float, seed: int) -> list[float]:
    """Regret after as many candidates as `AFTER` says, of one search."""
    options = {"sampler": sampler, "seed": seed, "trials": AFTER[-1]}
    methods = {"task_arithmetic": {"scaling_coef": ranges}}
    sweep = Sweep.model_validate({"name": "hill", "suite": "smollm2-mini", "methods": methods, "search": options})
    space = Space(sweep, DOMAINS, None)
    study = optuna.create_study(direction="maximize", sampler=search_sampler(sweep.search, space))
    random = np.random.default_rng(seed)
    true, seen = [], []
    for _ in range(AFTER[-1]):
        trial = study.ask()
        _, parameters = space.candidate({**space.suggest(trial), **trial.params})
        point = np.array([parameters["scaling_coef"][domain] for domain in DOMAINS])
        true.append(HEIGHT * float(np.exp(-((point - best) ** 2).sum() / (2 * WIDTH**2))))
        seen.append(true[-1] + noise * random.standard_normal())
        trial.set_user_attr(OWN_ERROR, noise)
        study.tell(trial, seen[-1])
    return [HEIGHT - true[int(np.argmax(seen[:count]))] for count in AFTER]


def main() -> None:
    """Print a row for each sampler, place of the best and range."""
    parser = argparse.ArgumentParser(description="What a range that grows costs, and brings.")
    parser.add_argument("samplers", nargs="*", default=("auto", "TPESampler"))
    parser.add_argument("--noise", type=float, default=0.025)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_intermixed_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"| sampler | best | range | {' | '.join(f'regret after {count}' for count in AFTER)} |")
    print("| --- | --- | --- |" + " --- |" * len(AFTER))
    for sampler in options.samplers:
        for place, outside in (("inside", 0), ("outside", 2)):
            for name, ranges in RANGES.items():
                found = []
                for seed in range(options.seeds):
                    random = np.random.default_rng([seed, 2])
                    best = random.uniform(0.2, 0.5, len(DOMAINS))
                    best[random.permutation(len(DOMAINS))[:outside]] = random.uniform(0.8, 1.2, outside)
                    found.append(search(ranges, sampler, best, options.noise, seed))
                regrets = np.array(found)
                errors = regrets.std(axis=0, ddof=1) / np.sqrt(len(regrets))
                cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(regrets.mean(axis=0), errors, strict=True)]
                print(f"| {sampler} | {place} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
