"""The page's item browser: choose models and a task, read the answers, compare two models item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from mergebench_ray.report.items import MAX_ANSWER, ItemKey, Question, ScoredModel, item_payload


def item_browser_html(
    models: Sequence[ScoredModel], questions: Mapping[ItemKey, Question], missing: Sequence[str]
) -> str:
    """The browser with its data and script; empty where no model has items.

    Args:
        models: whose items are shown.
        questions: what the items ask, where it is known.
        missing: models without items, named so that nobody looks for them.
    """
    if not models:
        return ""
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
    script = resources.files("mergebench_ray.report").joinpath("item_browser.js").read_text(encoding="utf-8")
    # Inside a script element only "<" could end it.
    data = payload.replace("<", "\\u003c")
    return f"""<p class="hint">{escape(" ".join(notes))}</p>
<div id="item-browser">
<div class="choices">
<label>model A <select id="model-a"></select></label>
<label>model B <select id="model-b"></select></label>
<label>task <select id="task"></select></label>
<label>show <select id="which">
<option value="all">all items</option><option value="differ">scores differ</option>
<option value="a">A scores higher</option><option value="b">B scores higher</option>
<option value="low">A scores less than 1</option></select></label>
<label>text <input id="text" type="search" placeholder="in question or answer"></label>
</div>
<p id="paired" class="paired"></p>
<div class="scroll"><table id="paired-table"></table></div>
<p id="item-count" class="hint" aria-live="polite"></p>
<table id="item-table"><thead><tr><th class="text">item</th><th class="text">model A</th>
<th class="text">model B</th></tr></thead><tbody></tbody></table>
<p class="pager"><button type="button" id="previous">previous</button> <button type="button" id="next">next</button></p>
</div>
<script type="application/json" id="item-data">{data}</script>
<script>{script}</script>"""
