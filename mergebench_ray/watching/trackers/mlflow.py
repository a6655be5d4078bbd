"""MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from mergebench_ray.watching.tracker import PROJECT, TrackedRun

_ID = f"{PROJECT}.run"
_NOT_TAKEN = re.compile(r"[^/\w.\- :]")
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""The search waits for the server. By itself the client would wait for one that is gone for a quarter of an hour."""


class MlflowTracker:
    """A run of MLflow.

    Args:
        client: speaks with the server, or with the files of a folder.
        run_id: the run's id there.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step."""
        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, values: Mapping[str, float]) -> None:
        """Log the best model's numbers."""
        self.log(0, {f"best/{name}": value for name, value in values.items()})
        self._client.set_terminated(self._run_id, "FINISHED" if values else "KILLED")


def _name(name: str) -> str:
    """A name that MLflow takes: those of constraints and weights hold what it does not."""
    return _NOT_TAKEN.sub("_", name.replace(">=", "at least").replace("<=", "at most"))


def begin(run: TrackedRun) -> MlflowTracker:
    """Begin a run, or go on with it; `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say where."""
    for variable, value in _PATIENCE.items():
        os.environ.setdefault(variable, value)
    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    place = experiment.experiment_id if experiment is not None else client.create_experiment(name)
    earlier = client.search_runs([place], f"tags.`{_ID}` = '{run.id}'", max_results=1)
    if earlier:
        run_id = earlier[0].info.run_id
        client.update_run(run_id, "RUNNING")
        return MlflowTracker(client, run_id)
    run_id = client.create_run(place, tags={_ID: run.id, MLFLOW_RUN_NAME: run.name}, run_name=run.name).info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)[:500]) for key, value in run.config.items()])
    return MlflowTracker(client, run_id)
