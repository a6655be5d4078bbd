"""Colours of methods, the same in every chart of a page."""

from __future__ import annotations

from collections.abc import Iterable

METHOD_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b58900", "#56b4e9"),
    *("#882255", "#5d8a24", "#6a51a3", "#8c564b", "#e377c2", "#1b9e9e"),
)


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method, in the order of their names."""
    return {name: METHOD_COLOURS[i % len(METHOD_COLOURS)] for i, name in enumerate(sorted(set(methods)))}
