"""What a run found: trials on disk, the leaderboard, the report, and the live view of a run that is under way."""

from __future__ import annotations

from mergebench_ray.results.leaderboard import (
    LeaderboardRow,
    best_candidate,
    leaderboard,
    leaderboard_markdown,
    leaderboard_table,
)
from mergebench_ray.results.trials import DomainResult, Trial, TrialStore, read_trials

__all__ = [
    "DomainResult",
    "LeaderboardRow",
    "Trial",
    "TrialStore",
    "best_candidate",
    "leaderboard",
    "leaderboard_markdown",
    "leaderboard_table",
    "read_trials",
]
