"""The model card: what was merged, how, from which bytes, and what it scored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mergebench_ray.config import ModelRef, Recipe
from mergebench_ray.errors import printable
from mergebench_ray.markup import markdown_table, markdown_text

Cell = float | tuple[float, float | None]
"""A score, alone or with its standard error."""

_LOADERS = {"image-text-to-text": "AutoModelForImageTextToText", "any-to-any": "AutoModelForMultimodalLM"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Publication:
    """What a card says of a model that others can fetch.

    Attributes:
        repo: where it lies on the hub, OWNER/NAME.
        licence: as the hub calls it; None where none is named or known.
        licence_from: whose it is: of the base, of the base whose card could not be read, or as the publisher says.
        licence_notes: where inputs say otherwise, a line each.
        languages: of base and specialists, as the hub calls them.
        task: the hub's name for what the model does.
        licence_details: `license_name` and `license_link`, where the licence is none of those that the hub knows.
    """

    repo: str
    licence: str | None = None
    licence_from: Literal["base", "unread base", "publisher"] = "base"
    licence_notes: Sequence[str] = ()
    languages: Sequence[str] = ()
    task: str = "text-generation"
    licence_details: Mapping[str, str] = field(default_factory=dict)


def model_card(
    recipe: Recipe,
    scores: Mapping[str, Mapping[str, Cell]] | None = None,
    notes: Sequence[str] = (),
    results: Sequence[EvalResult] = (),
    *,
    about_scores: str = "",
    publication: Publication | None = None,
) -> str:
    """Markdown with YAML front matter as model hubs read it.

    Args:
        recipe: how the model was made.
        scores: row (a model) -> column (a domain) -> score, alone or with its standard error. Columns are those of all
            rows in order of appearance; a missing or None value is shown as a dash.
        notes: rules that were applied where checkpoints differ, a line each.
        results: the model's own scores, for the front matter, where hubs look for them.
        about_scores: what the scores were taken on, in a sentence or two.
        publication: where the model can be fetched, and what else its page on the hub says.
    """
    parts = [
        f"---\n{_front_matter(recipe, results, publication).to_yaml()}\n---",
        f"# {_text(recipe.method)} merge of {len(recipe.specialists)} specialists",
        f"Merged with mergebench-ray in {recipe.dtype}. {_not_merged(recipe)}",
        *([] if publication is None else [_use(publication), _licence(publication)]),
        _inputs(recipe),
        f"## Recipe\n\nDigest: `{recipe.digest}`\n\n{_block(recipe.to_yaml())}",
        "Saved as a file, `mergebench-ray merge --recipe FILE --out DIR` makes the same weights again"
        + (", given the code of the method with `--methods-folder` or as a package." if recipe.method_source else ".")
        + (
            "" if publication is None else f" `mergebench-ray verify {publication.repo}` does, and compares every byte."
        ),
    ]
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {_text(note)}" for note in notes))
    if scores:
        parts.append(_scores(scores, about_scores))
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _not_merged(recipe: Recipe) -> str:
    """Whose the parts are that were not merged."""
    parts = [] if recipe.merged.embeddings else ["embeddings", "output head"]
    parts += [] if recipe.merged.towers else ["parts that see and hear"]
    parts += [] if recipe.tokenizer else ["tokenizer"]
    text = " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
    own = f"The tokenizer is {_text(recipe.tokenizer)}'s." if recipe.tokenizer else ""
    base = f"{text[0].upper()}{text[1:]} {'are' if len(parts) > 1 else 'is'} the base's." if parts else ""
    return " ".join(filter(None, (base, own)))


def evaluation_result(
    suite: str, split: str, domain: str, metric: str, score: float, standard_error: float, items: int
) -> EvalResult:
    """A domain's score as hubs read it.

    Args:
        suite: name of the suite.
        split: what was scored, "validation" or "test".
        domain: the domain.
        metric: what was counted; empty where that is not known.
        score: of the domain.
        standard_error: of the score; NaN where it is not known.
        items: number of items scored.
    """
    known = {"standard_error": standard_error} if math.isfinite(standard_error) else {}
    return EvalResult(
        task_type="text-generation",
        dataset_type=suite,
        dataset_name=f"{suite}: {domain}",
        dataset_config=domain,  # by which hubs tell results apart
        dataset_split=split,
        metric_type=metric or "score",
        metric_value=score,
        metric_args={**known, "items": items},
    )


def _front_matter(recipe: Recipe, results: Sequence[EvalResult], publication: Publication | None) -> ModelCardData:
    """Only models of the hub can be linked as base models; local folders are named in the recipe below."""
    references = [ModelRef.parse(text) for text in (recipe.base, *dict(sorted(recipe.specialists.items())).values())]
    sources = [part.hub_id for ref in references for part in (ref, ref.adapter) if part is not None]
    linked = list(dict.fromkeys(name for name in sources if _HUB_ID.fullmatch(name) and not Path(name).exists()))
    of_hub: dict[str, Any] = {}
    if publication is not None:
        of_hub = {"license": publication.licence, "language": list(publication.languages) or None}
        of_hub |= {"pipeline_tag": publication.task, **publication.licence_details}
    return ModelCardData(
        base_model=linked or None,
        base_model_relation="merge" if linked else None,
        library_name="transformers",
        tags=["merge", "mergebench-ray", recipe.method],
        model_name=f"{recipe.method} merge" if results else None,
        eval_results=list(results) or None,
        **of_hub,
    )


def _use(publication: Publication) -> str:
    """How to load it; a repo's name holds nothing that Python or a shell would take for its own."""
    loader = _LOADERS.get(publication.task, "AutoModelForCausalLM")
    program = (
        f"from transformers import {loader}, AutoTokenizer\n\n"
        f'model = {loader}.from_pretrained("{publication.repo}", dtype="auto")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{publication.repo}")'
    )
    return f"## How to use it\n\n```python\n{program}\n```\n\nOr `vllm serve {publication.repo}`."


def _licence(publication: Publication) -> str:
    name = _text(publication.licence_details.get("license_name") or publication.licence or "")
    stands = {
        "base": f"The base's: {name}." if name else "The base's, which does not name one.",
        "unread base": "The base's, which is not known here: look at the base.",
        "publisher": f"{name}, as who published it says.",
    }
    lines = [stands[publication.licence_from]]
    if publication.licence_notes:
        lines.append("Inputs that say otherwise, whose terms hold as well:")
    notes = "".join(f"\n- {_text(note)}" for note in publication.licence_notes)
    return f"## Licence\n\n{' '.join(lines)}" + (f"\n{notes}" if notes else "")


def _inputs(recipe: Recipe) -> str:
    rows = [["base", _code(recipe.base), _code(recipe.base_digest)]]
    for name in sorted(recipe.specialists):
        rows.append([_text(name), _code(recipe.specialists[name]), _code(recipe.specialist_digests[name])])
    return "## Inputs\n\n" + markdown_table(["input", "reference", "SHA-256 of the weights"], rows, [True] * 3)


def _scores(scores: Mapping[str, Mapping[str, Cell]], about: str) -> str:
    columns = list(dict.fromkeys(column for row in scores.values() for column in row))
    rows = [[_text(name), *(_shown(row.get(column)) for column in columns)] for name, row in scores.items()]
    table = markdown_table(["", *map(_text, columns)], rows, [True, *(False for _ in columns)])
    before = f"{_text(about)}\n\n" if about else ""
    return f"## Scores\n\n{before}{table}\n\nValues are followed by their standard error."


def _shown(cell: Cell | None) -> str:
    value, error = cell if isinstance(cell, tuple) else (cell, None)
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if error is None or not math.isfinite(error) else f"{value:.4f} ± {error:.4f}"


def _text(name: str) -> str:
    """A name that somebody chose, as text in a line or cell: nothing in it is Markdown or HTML."""
    return markdown_text(printable(name))


def _code(text: str) -> str:
    """A code span in a cell; its fence is longer than any run of backticks in it."""
    text = printable(text).replace("|", "\\|")
    fence = "`" * (1 + _longest_run(text))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _block(text: str) -> str:
    """A code block of YAML, which nothing in it ends."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}yaml\n{text}{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
