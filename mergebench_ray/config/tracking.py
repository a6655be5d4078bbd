"""With which service a run is tracked."""

from __future__ import annotations

from typing import Literal

TrackerName = Literal["wandb", "mlflow", "tensorboard", "trackio"]
