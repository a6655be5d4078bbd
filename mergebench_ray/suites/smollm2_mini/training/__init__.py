"""Training the specialists that ship with the built-in suite."""

from mergebench_ray.suites.smollm2_mini.training.adapter import TrainingPlan, train_adapter
from mergebench_ray.suites.smollm2_mini.training.batches import Example, encode
from mergebench_ray.suites.smollm2_mini.training.progress import TrainingProgress
from mergebench_ray.suites.smollm2_mini.training.specialists import PLANS, train_specialists

__all__ = ["PLANS", "Example", "TrainingPlan", "TrainingProgress", "encode", "train_adapter", "train_specialists"]
