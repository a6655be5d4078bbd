"""One candidate as a Ray Tune trial."""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

METRIC = "normalised_average"
RECIPE = "recipe"


class CandidateTrial(tune.Trainable):
    """Passes a suggestion to the scorer and its value to Tune.

    The actor is reused for all candidates and holds one handle, so there is nothing to set up again; it imports neither
    torch nor vLLM, so it starts quickly.
    """

    def setup(self, config: dict[str, Any], scorer: Any = None) -> None:
        """Keep the first suggestion and the handle of the `CandidateScorer` actor."""
        self._suggestion = config
        self._scorer = scorer

    def step(self) -> dict[str, Any]:
        """Score the candidate; its measurement waits in the scorer under the recipe's digest."""
        recipe, value = ray.get(self._scorer.evaluate.remote(self._suggestion))
        return {METRIC: value, RECIPE: recipe, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next suggestion into the same process."""
        self._suggestion = new_config
        return True
