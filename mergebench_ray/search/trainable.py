"""One candidate as a Ray Tune trial."""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

from mergebench_ray.bank import Bank
from mergebench_ray.search.space import Space

METRIC = "normalised_average"
RECIPE = "recipe"


class CandidateTrial(tune.Trainable):  # type: ignore[misc]
    """Turns a suggestion into a recipe and asks the scorer for its value.

    The actor is reused for all candidates: it holds handles only, so nothing is to be set up again.
    """

    def setup(
        self,
        config: dict[str, Any],
        scorer: Any = None,
        bank: Bank | None = None,
        space: Space | None = None,
    ) -> None:
        """Keep the handles.

        Args:
            config: the first suggestion.
            scorer: actor handle of the `CandidateScorer`.
            bank: the bank, for complete recipes.
            space: to read suggestions.
        """
        assert bank is not None
        assert space is not None
        self._scorer, self._bank, self._space = scorer, bank, space
        self._suggestion = config

    def step(self) -> dict[str, Any]:
        """Score the candidate; its measurement waits in the scorer under the recipe's digest."""
        method, parameters = self._space.candidate(self._suggestion)
        recipe = self._bank.recipe(method, parameters)
        value = ray.get(self._scorer.evaluate.remote(recipe))
        return {METRIC: value, RECIPE: recipe.model_dump(), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next suggestion into the same process."""
        self._suggestion = new_config
        return True
