"""One candidate as a Ray Tune trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from mergebench_ray.ray_actors import ActorMethod

Evaluate = ActorMethod[[Mapping[str, Any]], tuple[dict[str, Any], float]]
"""Suggestion -> recipe and the objective's value."""
METRIC = "objective"
"""Of Tune; the study knows the objective by its own name."""
RECIPE = "recipe"


class CandidateTrial(tune.Trainable):
    """Passes a suggestion to the scorer and its value to Tune.

    The actor is reused for all candidates and holds one handle, so there is nothing to set up again; it imports neither
    torch nor vLLM, so it starts quickly.
    """

    def setup(self, config: dict[str, Any], evaluate: Evaluate | None = None) -> None:
        """Keep the first suggestion and the method of the `CandidateScorer` actor that scores it."""
        self._suggestion = config
        assert evaluate is not None  # Tune wants a default
        self._evaluate = evaluate

    def step(self) -> dict[str, Any]:
        """Score the candidate; its measurement waits in the scorer under the recipe's digest."""
        recipe, value = ray.get(self._evaluate(self._suggestion))
        return {METRIC: value, RECIPE: recipe, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next suggestion into the same process."""
        self._suggestion = new_config
        return True
