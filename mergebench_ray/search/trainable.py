"""One candidate as a Ray Tune trial."""

from __future__ import annotations

from typing import Any

from ray import tune

METRIC = "objective"
"""Of Tune; the study knows the objective by its own name."""


class CandidateTrial(tune.Trainable):
    """Stands for a candidate that the driver's threads score: each step is a time to ask whether they have come to it.

    The actor is reused for all candidates. It knows nothing and imports neither torch nor vLLM, so it starts quickly,
    and where it is lost, with the node that it was put on, another one goes on asking.
    """

    def step(self) -> dict[str, Any]:
        """Nothing: the scheduler waits for what the scorer finds."""
        return {}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Stand for another candidate in the same process."""
        return True
