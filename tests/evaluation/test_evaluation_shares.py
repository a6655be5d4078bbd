"""Several engines share one candidate's items: nothing is asked twice or left out, and the scores are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors_here import ActorHere, fetch_here
from mergebench_ray import evaluate
from mergebench_ray.config import Suite, Sweep
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.evaluator import Evaluator, grade_together
from mergebench_ray.evaluation.order import Share
from mergebench_ray.machine import usable_cores
from mergebench_ray.placement import engines_per_candidate
from mergebench_ray.runs.evaluation_file import EvaluationFile, items_file
from mergebench_ray.scores import ItemRow, Scores
from task_files import write_choice_task, write_generation_task, write_suite
from tiny_models import tiny_llama

ITEMS = 12  # of the two tasks together


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_choice_task(folder)
    write_generation_task(folder)
    return write_suite(tmp_path, {"choice": {"capital_choice": "acc"}, "text": {"capital_text": "exact_match"}})


@pytest.mark.parametrize("count", [2, 5, ITEMS + 3])
def test_shares_together_are_the_whole(suite: Suite, engine: VLLMEngine, count: int) -> None:
    engine.restore_base()
    evaluator = Evaluator(suite, EvaluationOptions(), lambda: engine)
    whole = evaluator.score("test")
    shares = [evaluator.grade_share("test", Share(index, count)) for index in range(count)]
    sizes = [len(share.items) for share in shares]
    assert sum(sizes) == ITEMS
    assert max(sizes) - min(sizes) <= 1
    together = evaluator.combine("test", shares)
    check_same(together, whole)
    assert together.tokens >= whole.tokens


def test_items_that_are_known_are_not_asked_and_count_as_if_they_were(
    suite: Suite, engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_here(monkeypatch)
    engine.restore_base()
    evaluators: Any = [ActorHere(Evaluator(suite, EvaluationOptions(), lambda: engine))]
    whole, items = grade_together(evaluators, "test")
    assert sorted(items) == list(range(ITEMS))
    again, found = grade_together(evaluators, "test", known={place: items[place] for place in (0, 3, ITEMS - 1)})
    check_same(again, whole)
    assert found == items
    assert 0 < again.tokens < whole.tokens


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.apart
def test_two_running_engines_answer_each_item_once(suite: Suite, tmp_path: Path) -> None:
    if usable_cores() < 2:
        pytest.skip("two engines need two cores")
    model = str(tiny_llama(tmp_path / "model"))
    kept = {"out": tmp_path / "scores.json", "lm_eval_out": tmp_path / "lm_eval"}
    found = evaluate(model, suite=str(tmp_path / "suite.yaml"), engines=2, gen_kwargs={"max_gen_toks": 6}, **kept)
    assert found.not_written is None
    [results] = (tmp_path / "lm_eval").glob("*/results_*.json")
    assert (
        json.loads(results.read_text())["results"]["capital_choice"]["acc,none"] == found.scores.domains["choice"].score
    )
    assert len([*results.parent.glob("samples_*.jsonl")]) == 2
    assert EvaluationFile.read(tmp_path / "scores.json").asked.gen_kwargs == {"max_gen_toks": 6}
    assert {name: domain.items for name, domain in found.scores.domains.items()} == {"choice": 6, "text": 6}
    rows = pq.read_table(items_file(tmp_path / "scores.json")).to_pylist()
    assert sorted(row["task"] for row in rows) == ["capital_choice"] * 6 + ["capital_text"] * 6
    assert len({(row["task"], row["item"]) for row in rows}) == ITEMS
    assert all(row["answer"] for row in rows)


def test_more_engines_than_the_cluster_has_room_for_are_refused(
    suite: Suite, ray_cluster: None, base_folder: Path, tmp_path: Path
) -> None:
    too_many = usable_cores() + 1
    with pytest.raises(InputError, match=rf"engine.count = {too_many}: its {too_many} engines .* use fewer engines"):
        evaluate(str(base_folder), suite=str(tmp_path / "suite.yaml"), engines=too_many, out=tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()


def test_an_engine_is_refused_and_does_not_wait_where_others_use_the_cluster(
    suite: Suite, ray_cluster: None, base_folder: Path, tmp_path: Path
) -> None:
    taken = placement_group([{"CPU": ray.cluster_resources()["CPU"] - 0.5}])
    assert taken.wait(60)
    try:
        with pytest.raises(InputError, match=r"engine.count = 1: its 1 engines are counted as a core each, and there"):
            evaluate(str(base_folder), suite=str(tmp_path / "suite.yaml"))
    finally:
        remove_placement_group(taken)


def test_few_rounds_of_a_search_make_engines_share_a_candidate() -> None:
    def engines(trials: int, division: str) -> int:
        content = {
            "name": "x",
            "suite": "smollm2-mini",
            "methods": {"ties": {}},
            "search": {"trials": trials},
            "engine": {"count": 4, "division": division},
        }
        return engines_per_candidate(Sweep.model_validate(content))

    assert [engines(trials, "auto") for trials in (4, 31, 32, 400)] == [4, 4, 1, 1]
    assert [engines(trials, "items") for trials in (4, 400)] == [4, 4]
    assert [engines(trials, "candidates") for trials in (4, 400)] == [1, 1]


def check_same(one: Scores, other: Scores) -> None:
    """The same items and scores; what else is in a batch changes the rounding of answers."""
    assert one.domains == other.domains
    assert one.tasks == other.tasks
    assert [without_answer(row) for row in one.items] == [without_answer(row) for row in other.items]
    for row, same in zip(one.items, other.items):
        if row["domain"] == "choice":
            assert json.loads(row["answer"]) == pytest.approx(json.loads(same["answer"]), abs=1e-3)


def without_answer(row: ItemRow) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "answer"}
