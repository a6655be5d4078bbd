"""Telling metrics and a tracker what a search does; what goes wrong there never stops the search."""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mergebench_ray.config import Sweep
from mergebench_ray.runs.leaderboard import best_candidate
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.watching.metrics import SearchMetrics
from mergebench_ray.watching.tracker import TrackedRun, Tracker, begin_tracking, reason_of, without_logins


@contextmanager
def watching(sweep: Sweep, run: RunFolder, store: TrialStore, note: Callable[[str], None]) -> Iterator[Watch]:
    """Who watches a run, until the block ends; arguments and errors as `Watch`."""
    watch = Watch(sweep, run, store, note)
    try:
        yield watch
    finally:
        watch.end()


class Watch:
    """Who watches a run: the cluster's metrics, once Ray is up, and perhaps a tracker.

    Args:
        sweep: says which tracker.
        run: the run's folder.
        store: its rows; the tracker is told those of earlier sittings that it has not been told yet.
        note: called with a line that people should see.

    Raises:
        InputError: the tracker cannot begin.
    """

    def __init__(self, sweep: Sweep, run: RunFolder, store: TrialStore, note: Callable[[str], None]) -> None:
        self._sweep, self._store, self._note = sweep, store, note
        self._told = run.tracked_file
        self._metrics: SearchMetrics | None = None
        self._tracker: Tracker | None = None
        self._best: Trial | None = None
        if sweep.tracking is not None:
            config = json.loads(sweep.model_dump_json(exclude_none=True))
            tracked = TrackedRun(sweep.name, run.read_id() or "0" * 32, run.path, config)
            self._tracker = begin_tracking(sweep.tracking, tracked)
            self._tell()

    def finished(self, trial: Trial, best: Trial | None) -> None:
        """A candidate came to its end; `best` is the best one so far."""
        self._measure(lambda metrics: metrics.finished(trial, best))
        self._tell()

    def moved(self, num_bytes: int) -> None:
        """Merges have read and written so many bytes since the run's engines were up."""
        self._measure(lambda metrics: metrics.moved(num_bytes))

    def failed(self) -> None:
        """An engine, a shard or a node was lost, or brought back."""
        self._measure(lambda metrics: metrics.failed())

    def won(self, best: Trial) -> None:
        """The run has found its best model: as it was scored on test."""
        self._best = best

    def end(self) -> None:
        """The run is over, or stops here."""
        if self._tracker is not None:
            tracker, values = self._tracker, {} if self._best is None else numbers_of(self._best)
            self._try(lambda: tracker.end(values))

    def _tell(self) -> None:
        """Tell the tracker what it has not been told: each candidate is a step."""
        if self._tracker is None:
            return
        tracker, told, rows = self._tracker, self._read_told(), searched(self._store.trials())
        for step in range(told, len(rows)):
            best = best_candidate(rows[: step + 1])
            values = numbers_of(rows[step])
            if best is not None and best.objective.value is not None:
                values["best"] = best.objective.value
            self._try(lambda step=step, values=values: tracker.log(step, values))  # type: ignore[misc]
        if told < len(rows):
            count = json.dumps({str(self._sweep.tracking): len(rows)})
            self._try(lambda: self._told.write_text(count))

    def _measure(self, do: Callable[[SearchMetrics], None]) -> None:
        """Tell the metrics, which are made when Ray is up."""
        try:
            if self._metrics is None:
                self._metrics = SearchMetrics(self._sweep.name)
            do(self._metrics)
        except Exception as error:
            logging.getLogger(__name__).warning("a metric was not told", exc_info=error)

    def _read_told(self) -> int:
        """How many rows this run's tracker has; a lost count has it told all again."""
        try:
            found = json.loads(self._told.read_text()).get(str(self._sweep.tracking), 0)
        except (OSError, ValueError, AttributeError):
            return 0
        return found if isinstance(found, int) else 0

    def _try(self, do: Callable[[], object]) -> None:
        if self._tracker is None:
            return
        try:
            do()
        except Exception as error:
            self._tracker = None
            lines = without_logins("".join(traceback.format_exception(error)))
            logging.getLogger(__name__).warning("the tracker failed: %s", lines)
            self._note(
                f"{self._sweep.tracking} is told nothing more ({reason_of(error):.200}); it is when the run goes on"
            )


def numbers_of(trial: Trial) -> dict[str, float]:
    """What trackers draw of a row: its finite numbers, by the names of the columns of trials.parquet."""
    return {
        name.replace(".", "/"): float(value)
        for name, value in _drawn(trial.flat()).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _drawn(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.split(".")[0] not in ("items", "version")}
