"""Scoring models on tasks: from weights in an engine to item, domain and normalised scores."""

from __future__ import annotations

from mergebench_ray.evaluation.evaluator import (
    Evaluator,
    EvaluatorStats,
    check_engines_fit,
    score_together,
    start_evaluator,
)
from mergebench_ray.evaluation.scores import ItemRow, Scores, TaskScore
from mergebench_ray.scores import DomainScore, average_score, normalised_average, retained_average
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, Split, items_digest

__all__ = [
    "DomainScore",
    "Evaluator",
    "EvaluatorStats",
    "ItemRow",
    "ScoredTask",
    "Scores",
    "Split",
    "TaskScore",
    "average_score",
    "check_engines_fit",
    "items_digest",
    "load_tasks",
    "normalised_average",
    "retained_average",
    "score_together",
    "start_evaluator",
]
