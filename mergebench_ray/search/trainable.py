"""One candidate as a Ray Tune trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from mergebench_ray.ray_actors import ActorMethod

TakeStep = ActorMethod[[Mapping[str, Any]], None]
"""Scores the candidate of a suggestion up to its next look."""
METRIC = "objective"
"""Of Tune; the study knows the objective by its own name."""


class CandidateTrial(tune.Trainable):
    """Passes a suggestion to the scorer, once for each look.

    The actor is reused for all candidates and holds one handle, so there is nothing to set up again; it imports neither
    torch nor vLLM, so it starts quickly. It keeps nothing: what a candidate has answered is with the scorer.
    """

    def setup(self, config: dict[str, Any], take_step: TakeStep | None = None) -> None:
        """Keep the first suggestion and the method of the `CandidateScorer` actor that scores it."""
        self._suggestion = config
        assert take_step is not None  # Tune wants a default
        self._take_step = take_step

    def step(self) -> dict[str, Any]:
        """Score the candidate up to its next look; what that found waits in the scorer."""
        ray.get(self._take_step(self._suggestion))
        return {}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next suggestion into the same process."""
        self._suggestion = new_config
        return True
