"""Every key that a user may write has a description: the reference pages are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from mergebench_ray.config import Recipe, Suite, Sweep
from mergebench_ray.methods import get_method, method_names


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of, those inside them included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for inner in get_args(annotation):
        yield from models_in(inner)


def test_every_key_of_sweeps_suites_recipes_and_methods_has_a_description() -> None:
    files = [Sweep, Suite, Recipe, *(get_method(name).Parameters for name in method_names())]
    models = {model for file in files for model in models_in(file)}
    lacking = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert not lacking
