"""Merging methods, one file each; a file added to this folder is found without being named anywhere."""

from __future__ import annotations

from mergebench_ray.methods.method import Method, sum_of
from mergebench_ray.methods.outside import load_methods
from mergebench_ray.methods.parameters import (
    MethodParameters,
    ScalingCoefficient,
    TensorPlace,
    layer_group,
    per_specialist,
)
from mergebench_ray.methods.registry import (
    complete_parameters,
    get_method,
    method_names,
    method_source,
    parse_parameters,
    register,
)
from mergebench_ray.methods.solver import Solver
from mergebench_ray.methods.statistics import Calibrated, CalibrationRequest, InnerProducts, Statistics, Transform

__all__ = [
    "Calibrated",
    "CalibrationRequest",
    "InnerProducts",
    "Method",
    "MethodParameters",
    "ScalingCoefficient",
    "Solver",
    "Statistics",
    "TensorPlace",
    "Transform",
    "complete_parameters",
    "get_method",
    "layer_group",
    "load_methods",
    "method_names",
    "method_source",
    "parse_parameters",
    "per_specialist",
    "register",
    "sum_of",
]
