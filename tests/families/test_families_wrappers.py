"""What wrappers put into the names of tensors is found and taken away, one wrapper after the other."""

from __future__ import annotations

import pytest

from mergebench_ray.families.wrappers import unwrapped

NAMES = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "language_model."])
def test_a_prefix_of_all_names_is_taken_away(prefix: str) -> None:
    wrapped = [prefix + name for name in NAMES]
    assert list(unwrapped(wrapped)) == [(prefix, dict(zip(wrapped, NAMES, strict=True)))]


def test_a_prefix_of_some_names_is_part_of_them() -> None:
    assert list(unwrapped(["module.norm.weight", *NAMES])) == []


def test_wrappers_around_single_layers_are_taken_out_of_the_middle() -> None:
    ((taken, names),) = unwrapped(["model.layers.1._fsdp_wrapped_module.mlp.up_proj.weight", NAMES[0]])
    assert taken == "_fsdp_wrapped_module."
    assert list(names.values()) == [NAMES[1], NAMES[0]]


def test_a_nested_language_model_keeps_the_rest_of_its_names() -> None:
    ((_, names),) = unwrapped(["model.language_model.layers.1.mlp.up_proj.weight"])
    assert list(names.values()) == [NAMES[1]]


def test_wrappers_come_off_one_by_one() -> None:
    steps = list(unwrapped([f"module._orig_mod.{name}" for name in NAMES]))
    assert [taken for taken, _ in steps] == ["module.", "module._orig_mod."]
    assert list(steps[-1][1].values()) == NAMES


def test_names_that_would_become_one_stay_two() -> None:
    assert list(unwrapped(["model._orig_mod.norm.weight", "model.norm.weight"])) == []
