"""What a search may cost."""

from __future__ import annotations

from pydantic import Field, model_validator

from mergebench_ray.config.fields import Strict

MOST_CANDIDATES = 1_000_000


class BudgetOptions(Strict):
    """What a search may cost, references, final choice and test included; whichever is reached first ends it."""

    candidates: int | None = Field(default=None, ge=1, le=MOST_CANDIDATES, description="Candidates to try.")
    tokens: int | None = Field(
        default=None, ge=1, le=10**15, description="Tokens that engines and judges read and write."
    )
    minutes: float | None = Field(
        default=None, gt=0, le=10**8, description="Wall time from the start of the command, all sittings together."
    )
    gpu_hours: float | None = Field(
        default=None, gt=0, le=10**8, description="Wall time in hours, times the GPUs that the search holds."
    )

    @model_validator(mode="after")
    def _check_given(self) -> BudgetOptions:
        if not self.limits:
            raise ValueError("says nothing; give candidates, tokens, minutes or gpu_hours, or leave it out")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Unit -> how much of it there is."""
        return {unit: limit for unit, limit in self.model_dump().items() if limit is not None}
