"""The front on the page: what it shows, and that weights and a click pick a model and show its recipe."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from browser import body_in_browser
from made_up_trials import for_front, made_up_trials
from mergebench_ray.report.pages import write_report
from mergebench_ray.runs.leaderboard import best_candidate, by_choice, front
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial

TWO = ["math", "safety"]


def page_of(folder: Path, trials: list[Trial]) -> str:
    store = TrialStore(folder)
    for trial in trials:
        store.append(trial)
    return write_report(folder).read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, list[dict[str, str]]]:
    found = re.search(r'id="front-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, list[dict[str, str]]] = json.loads(found[1])
    return data


def test_a_search_for_one_objective_has_no_front_on_its_page(tmp_path: Path) -> None:
    assert "front-data" not in page_of(tmp_path, made_up_trials(4))


def test_all_candidates_are_there_the_front_first_with_its_recipes(tmp_path: Path) -> None:
    trials = for_front(made_up_trials(), TWO)
    members = by_choice(front(trials))
    run = RunFolder(tmp_path)
    run.front_folder.mkdir()
    first = members[0]
    run.front_recipe_file(str(first.method), first.number).write_text("method: it\n")
    page = page_of(tmp_path, trials)
    models = data_of(page)["models"]
    assert [one["label"] for one in models[: len(members)]] == [one.label for one in members]
    assert len(models) == 14
    assert models[0]["recipe"] == "method: it\n"
    assert models[0]["file"] == f"front/{first.method}-{first.number}.yaml"
    assert models[1]["recipe"].startswith("method: t")
    assert "scaling_coef:" in models[1]["recipe"]
    assert "It was chosen by the knee of a front of" in page
    assert page.count('class="front-weight"') == 2


def test_a_winner_next_to_the_front_is_shown_with_its_recipe_too(tmp_path: Path) -> None:
    trials = for_front(made_up_trials(test=False), TWO)
    other = next(one for one in trials if one.role == "candidate" and one not in front(trials))
    run = RunFolder(tmp_path)
    run.front_folder.mkdir()
    run.front_recipe_file(str(other.method), other.number).write_text("method: it\n")
    models = data_of(page_of(tmp_path, [*trials, replace(other, split="final", chosen=True)]))["models"]
    assert [one["label"] for one in models if one["recipe"] == "method: it\n"] == [other.label]


def test_charts_say_which_number_of_several_they_show_and_do_without_one_that_is_not_known(tmp_path: Path) -> None:
    trials = [
        replace(one, normalised_average=None, normalised_standard_error=None) if one.number == 2 else one
        for one in for_front(made_up_trials(), TWO)
    ]
    assert "left to right, and normalised average, upwards" in page_of(tmp_path / "some", trials)
    none = [replace(one, normalised_average=None, normalised_standard_error=None) for one in trials]
    assert "The best of 14 candidates is" in page_of(tmp_path / "none", none)


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script><b onload=x>"
    trials = for_front(made_up_trials(), TWO)
    trials = [
        replace(
            one,
            name=nasty if one.role == "candidate" else one.name,
            method=nasty if one.method else None,
            objectives={nasty: one.objectives["math"], "safety": one.objectives["safety"]} if one.objectives else {},
        )
        for one in trials
    ]
    page = page_of(tmp_path, trials)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<b onload" not in page


SCRIPT = """
<script>
const picked = () => document.getElementById("front-picked").textContent;
const said = [picked()];
const sliders = [...document.querySelectorAll(".front-weight")];
sliders.forEach((one, place) => { one.value = place === 1 ? 10 : 0; one.dispatchEvent(new Event("input")); });
said.push(picked(), document.getElementById("front-choice").textContent);
const chart = document.querySelector("#front-scatter .plotly-graph-div");
chart.emit("plotly_click", { points: [{ curveNumber: 0, pointNumber: 0 }] });
said.push(picked(), document.getElementById("front-recipe").textContent.split("\\n")[0]);
const select = document.getElementById("front-across");
if (select) { select.value = "2"; select.dispatchEvent(new Event("change")); }
document.body.dataset.said = JSON.stringify(said);
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [TWO, ["coding", "math", "safety"]], ids=["two", "three"])
def test_in_a_browser_weights_and_a_click_pick_a_model_and_show_its_recipe(tmp_path: Path, names: list[str]) -> None:
    trials = for_front(made_up_trials(), names)
    page = page_of(tmp_path / "run", trials)
    models = data_of(page)["models"]
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"{SCRIPT}</body>"))
    body = body_in_browser(file, tmp_path / "browser")
    found = re.search(r'data-said="([^"]*)"', body)
    assert found is not None
    at_first, weighed, choice, clicked, recipe = json.loads(html.unescape(found[1]))
    best, members = best_candidate(trials), front(trials)
    assert best is not None
    assert at_first.startswith(f"{best.label} (the chosen one): ")
    assert weighed.startswith(max(members, key=lambda one: one.objectives[names[1]].value or 0.0).label)
    assert choice == f"choice: {{weights: {{{names[1]}: 10}}}}"
    assert clicked.startswith(models[len(members)]["label"])
    assert recipe == models[len(members)]["recipe"].split("\n")[0]
