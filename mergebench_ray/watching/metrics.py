"""What Ray's metrics say of a search; Prometheus reads them from each node, and `cluster/grafana.json` draws them."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from mergebench_ray.runs.spending import tokens_of
from mergebench_ray.runs.trials import Trial, is_known

_TAGS = ("run",)
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]


class SearchMetrics:
    """Metrics of one run, of which each carries the name. Ray must be up.

    Args:
        run: the run's name.
    """

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._bytes = 0
        self._candidates = Counter(
            "mergebench_ray_candidates", "Candidates that came to their end.", (*_TAGS, "outcome", "method")
        )
        self._tokens = Counter("mergebench_ray_tokens", "Tokens that engines and judges read and wrote.", _TAGS)
        self._swap = Histogram("mergebench_ray_swap_seconds", "Merging a candidate and loading it.", _SECONDS, _TAGS)
        self._score = Histogram("mergebench_ray_score_seconds", "Answering and grading.", _SECONDS, _TAGS)
        self._best = Gauge("mergebench_ray_best_objective", "Objective of the best candidate so far.", _TAGS)
        self._moved = Counter("mergebench_ray_moved_bytes", "Bytes that merges read and wrote.", _TAGS)
        self._failures = Counter("mergebench_ray_failures", "Times that something was lost, or brought back.", _TAGS)

    def finished(self, trial: Trial, best: Trial | None) -> None:
        """A candidate came to its end; `best` is the best one so far."""
        outcome = "stopped" if trial.estimate is not None else "scored" if tokens_of(trial) else "known"
        self._candidates.inc(1, {**self._run, "outcome": outcome, "method": trial.method or ""})
        if tokens := tokens_of(trial):
            self._tokens.inc(tokens, self._run)
            self._swap.observe(trial.merge_seconds + trial.load_seconds, self._run)
            self._score.observe(trial.score_seconds, self._run)
        if best is not None and best.objective.value is not None and is_known(best.objective.value):
            self._best.set(best.objective.value, self._run)

    def moved(self, num_bytes: int) -> None:
        """Merges have read and written so many bytes since the run's engines were up."""
        if num_bytes > self._bytes:
            self._moved.inc(num_bytes - self._bytes, self._run)
            self._bytes = num_bytes

    def failed(self) -> None:
        """An engine, a shard or a node was lost, or brought back."""
        self._failures.inc(1, self._run)
