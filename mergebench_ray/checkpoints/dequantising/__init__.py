"""Quantised weights, made plain a few rows at a time by the arithmetic of the libraries that wrote them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.checkpoint import TensorInfo
from mergebench_ray.checkpoints.dequantising.packed_weight import Found, UnreadableError
from mergebench_ray.errors import one_line

_SETTINGS = ("quantization_config", "compression_config")
_NESTED = ("text_config", "llm_config")
# `quant_method` of a configuration -> the module here that finds and reads such weights.
_METHODS = {
    "awq": "awq",
    "bitsandbytes": "bits_and_bytes",
    "compressed-tensors": "compressed",
    "fp8": "fp8",
    "gptq": "gptq",
    "mxfp4": "mxfp4",
}


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration says about how its weights are quantised; None where it says nothing."""
    parts = [config, *(config[name] for name in _NESTED if isinstance(config.get(name), dict))]
    found = [part[key] for part in parts for key in _SETTINGS if isinstance(part.get(key), dict) and part[key]]
    return found[0] if found else None


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of the same model with plain weights."""
    kept = {key: value for key, value in config.items() if key not in _SETTINGS}
    return {
        key: without_quantisation(value) if key in _NESTED and isinstance(value, dict) else value
        for key, value in kept.items()
    }


def method_of(options: Mapping[str, Any]) -> str | None:
    """How weights are quantised, by the name that transformers gives it; None where it is not said."""
    said = options.get("quant_method", options.get("quant_algo"))
    if said is None and (options.get("load_in_4bit") or options.get("load_in_8bit")):
        return "bitsandbytes"
    return said.lower() if isinstance(said, str) else None


def find_packed(config: Mapping[str, Any], file: Path, tensors: Mapping[str, TensorInfo]) -> Found | None:
    """The quantised weights among stored tensors, known from configuration and headers alone.

    Args:
        config: content of a config.json.
        file: where it was read.
        tensors: by name, as they are stored.

    Returns:
        None where none is quantised, or not in a way that the configuration says and that is read here.

    Raises:
        UnreadableError: it is one of these ways, but not as it is known here.
    """
    options = quantisation(config)
    method = None if options is None else _METHODS.get(method_of(options) or "")
    if options is None or method is None:
        return None
    module = importlib.import_module(f"{__name__}.{method}")
    try:
        found = module.find(options, tensors, config, file)
    except UnreadableError:
        raise
    except Exception as error:  # other people's code on other people's data
        raise UnreadableError(one_line(error)) from error
    assert isinstance(found, Found)
    return found if found.weights else None
