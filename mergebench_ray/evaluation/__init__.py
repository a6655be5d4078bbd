"""Scoring models on tasks: what is asked of an engine, how answers are graded, and how scores are combined."""

from __future__ import annotations

from mergebench_ray.evaluation.evaluator import (
    Evaluator,
    EvaluatorStats,
    check_engines_fit,
    score_together,
    start_evaluator,
)

__all__ = ["Evaluator", "EvaluatorStats", "check_engines_fit", "score_together", "start_evaluator"]
