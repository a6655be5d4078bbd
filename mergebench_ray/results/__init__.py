"""What a run found: trials on disk, the leaderboard, the report, and the live view of a run that is under way."""

from __future__ import annotations

from mergebench_ray.results.leaderboard import (
    LeaderboardRow,
    best_candidate,
    best_of_each_method,
    leaderboard,
    leaderboard_markdown,
    leaderboard_table,
)
from mergebench_ray.results.live import LiveView
from mergebench_ray.results.report import write_report
from mergebench_ray.results.trials import (
    COEFFICIENTS,
    Role,
    Split,
    Trial,
    TrialStore,
    engine_names,
    read_trials,
    write_questions,
)

__all__ = [
    "COEFFICIENTS",
    "LeaderboardRow",
    "LiveView",
    "Role",
    "Split",
    "Trial",
    "TrialStore",
    "best_candidate",
    "best_of_each_method",
    "engine_names",
    "leaderboard",
    "leaderboard_markdown",
    "leaderboard_table",
    "read_trials",
    "write_questions",
    "write_report",
]
