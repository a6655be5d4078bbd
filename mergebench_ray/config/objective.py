"""How a sweep names what it is after."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mergebench_ray.config.fields import Line
from mergebench_ray.config.names import Name

Weight = Annotated[float, Field(gt=0, le=1e6)]
ObjectiveSpec = Line | dict[Name, Weight]
"""An objective's or domain's name, or domain -> its weight."""
