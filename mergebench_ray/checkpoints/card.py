"""The model card: what was merged, how, from which bytes, and what it scored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mergebench_ray.config import ModelRef, Recipe

Cell = float | tuple[float, float | None]
"""A score, alone or with its standard error."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def model_card(recipe: Recipe, scores: Mapping[str, Mapping[str, Cell]] | None = None) -> str:
    """Markdown with YAML front matter as model hubs read it.

    Args:
        recipe: how the model was made.
        scores: row (a model) -> column (a domain) -> score, alone or with its standard error. Columns are those of all
            rows in order of appearance; a missing or None value is shown as a dash.
    """
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(recipe), sort_keys=False, allow_unicode=True)}---",
        f"# {recipe.method} merge of {len(recipe.specialists)} specialists",
        f"Merged with mergebench-ray in {recipe.dtype}. Embeddings, output head and tokenizer are the base's.",
        _inputs(recipe),
        f"## Recipe\n\nDigest: `{recipe.digest}`\n\n```yaml\n{recipe.to_yaml()}```",
        "Saved as a file, `mergebench-ray merge --recipe FILE --out DIR` makes the same weights again.",
    ]
    if scores:
        parts.append(_scores(scores))
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe) -> dict[str, Any]:
    """Only models of the hub can be linked as base models; local folders are named in the recipe below."""
    references = [ModelRef.parse(text) for text in (recipe.base, *dict(sorted(recipe.specialists.items())).values())]
    sources = [part.source for ref in references for part in (ref, ref.adapter) if part is not None]
    linked = list(dict.fromkeys(name for name in sources if _HUB_ID.fullmatch(name) and not Path(name).exists()))
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "mergebench-ray", recipe.method]}
    return {"base_model": linked, "base_model_relation": "merge", **front} if linked else front


def _inputs(recipe: Recipe) -> str:
    rows = [["base", f"`{recipe.base}`", f"`{recipe.base_digest}`"]]
    for name in sorted(recipe.specialists):
        rows.append([name, f"`{recipe.specialists[name]}`", f"`{recipe.specialist_digests[name]}`"])
    return "## Inputs\n\n" + _table(["input", "reference", "SHA-256 of the weights"], rows)


def _scores(scores: Mapping[str, Mapping[str, Cell]]) -> str:
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    rows = [[name, *(_shown(row.get(column)) for column in columns)] for name, row in scores.items()]
    return "## Scores\n\n" + _table(["", *columns], rows) + "\n\nValues are followed by their standard error."


def _shown(cell: Cell | None) -> str:
    value, error = cell if isinstance(cell, tuple) else (cell, None)
    if value is None:
        return "–"
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
