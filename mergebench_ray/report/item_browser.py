"""The page's item browser: choose models and a task, read the answers, compare two models item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mergebench_ray.report.items import MAX_ANSWER, ItemKey, Question, ScoredModel, item_payload
from mergebench_ray.report.page import NOTHING, render


def item_browser_html(
    models: Sequence[ScoredModel], questions: Mapping[ItemKey, Question], missing: Sequence[str]
) -> Markup:
    """The browser with its data and script; empty where no model has items.

    Args:
        models: whose items are shown.
        questions: what the items ask, where it is known.
        missing: models without items, named so that nobody looks for them.
    """
    if not models:
        return NOTHING
    payload, shown, total = item_payload(models, questions)
    notes = [f"All {total:,} items are here."]
    if shown < total:
        notes = [
            f"{shown:,} of {total:,} items are here, of each task those with the smallest prompt digests, so that the "
            f"page stays small; the other {total - shown:,} are in the run's folder items/. "
            "Paired differences are over all items."
        ]
    notes.append(f"Answers are cut after {MAX_ANSWER:,} characters.")
    if missing:
        notes.append(f"Without items on disk, or left out: {', '.join(missing)}.")
    # Inside a script element only "<" could end it.
    data = Markup(payload.replace("<", "\\u003c"))
    return render("item_browser.html", notes=" ".join(notes), data=data)
