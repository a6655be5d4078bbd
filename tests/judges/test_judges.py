"""Judging: who is asked what, and what that makes of scores; a real tiny judge in an engine and an actor of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors_here import ActorHere
from made_up_trials import made_up_trials
from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import Domain, EngineOptions, Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.judge import Judge
from mergebench_ray.config.suite import Decoding
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.errors import InputError, StoppedError
from mergebench_ray.evaluation import Evaluator
from mergebench_ray.evaluation.grading import grade
from mergebench_ray.evaluation.order import Share
from mergebench_ray.judges.judge_engine import FoundJudge, JudgeEngine
from mergebench_ray.judges.judges import (
    Judges,
    RemoteJudge,
    digests,
    find_judges,
    parse_error_lines,
    running_judges,
)
from mergebench_ray.runs.opening import check_same_items
from mergebench_ray.scores import Scores
from mergebench_ray.tasks.loading import load_tasks
from task_files import write_lines
from tiny_judge import ANSWERS, SAFETY, judge_settings, tiny_judge

ENGINE_LENGTH = 1024  # of the session's engine


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("models") / "judge")


@pytest.fixture
def suite() -> Suite:
    return Suite.load("mergebench").only_tasks(SAFETY, "test")


def test_a_pair_is_asked_once_in_one_batch_and_remembered(engine: VLLMEngine, base_folder: Path) -> None:
    engine.restore_base()
    calls: list[int] = []
    answer = engine.generate

    def count(requests: Any) -> Any:
        calls.append(len(requests))
        return answer(requests)

    judge = Judge(**judge_settings(base_folder, parser="wildguard", max_answer_tokens=4, max_model_len=200))
    found = FoundJudge("wildguard", judge, resolve(str(base_folder)), Path())
    judging = JudgeEngine(found, lambda: engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "generate", count)
        first, seconds, tokens = judging.judge([("a", "b"), ("ab", ""), ("a", "b")])
        again, _, _ = judging.judge([("ab", ""), ("c", "d"), ("a", "b")])
        (too_long,), _, _ = judging.judge([("a", "long " * 500)])
        _, no_seconds, no_tokens = judging.judge([("a", "b")])
    assert calls == [2, 1, 0]
    assert first[0] == first[2] == again[2]
    assert first[1] == again[0]
    assert too_long.verdict is None
    assert "do not fit 196" in too_long.answer
    assert seconds > 0
    assert tokens > 2 * 4
    assert (no_seconds, no_tokens) == (0.0, 0)


def test_what_waits_for_a_busy_judge_is_asked_in_one_batch(engine: VLLMEngine, base_folder: Path) -> None:
    engine.restore_base()
    sizes: list[int] = []
    busy, free = threading.Event(), threading.Event()
    answer = engine.generate

    def answer_when_free(requests: Any) -> Any:
        sizes.append(len(requests))
        busy.set()
        assert free.wait(60)
        return answer(requests)

    judge = Judge(**judge_settings(base_folder, parser="wildguard", max_answer_tokens=2, max_model_len=200))
    judging = JudgeEngine(FoundJudge("wildguard", judge, resolve(str(base_folder)), Path()), lambda: engine)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as candidates:
        patch.setattr(engine, "generate", answer_when_free)
        first = candidates.submit(judging.judge, [("a", "b")])
        assert busy.wait(60)
        others = [candidates.submit(judging.judge, [("a", "b"), (str(n), "c"), ("d", "e")]) for n in range(3)]
        while len(judging._waiting) < 1 + 3 + 1:
            time.sleep(0.01)
        free.set()
        judged = [one.result() for one in (first, *others)]
    assert sizes == [1, 4]
    assert [len(one.judgements) for one in judged] == [1, 3, 3, 3]
    assert all(one.judgements[0] == judged[0].judgements[0] for one in judged)
    assert all(one.tokens > 0 for one in judged)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Requests whose last letter tells what the tiny judge will say."""
    folder = tmp_path_factory.mktemp("data")
    requests = [f"Do harm, number {number}, {letter}" for number in range(2) for letter in ANSWERS]
    labels = {"prompt_harm_label": "harmful", "response_harm_label": "harmful"}
    rows: dict[str, list[dict[str, Any]]] = {
        "allenai/wildguardmix": [{"prompt": one, **labels} for one in requests],
        "allenai/tulu-3-harmbench-eval": [{"Behavior": one} for one in requests],
        "allenai/tulu-3-do-anything-now-eval": [{"adversarial": one} for one in requests],
        "walledai/XSTest": [{"prompt": one, "label": ("safe", "unsafe")[n // 4]} for n, one in enumerate(requests)],
    }
    files = {name: folder / f"{number}.jsonl" for number, name in enumerate(rows)}
    for name, file in files.items():
        write_lines(file, rows[name])
    return {name: str(file) for name, file in files.items()}


def short(suite: Suite) -> Suite:
    """The suite with all items in the test split and answers of a few tokens."""
    tasks = {
        name: how.model_copy(update={"decoding": Decoding(temperature=how.decoding.temperature, max_answer_tokens=4)})
        for name, how in suite.domains["safety"].tasks.items()
    }
    changes = {"held_out_share": 1e-9, "max_model_len": ENGINE_LENGTH, "domains": {"safety": Domain(tasks=tasks)}}
    return suite.model_copy(update=changes)


@pytest.fixture(scope="module")
def options(data: Mapping[str, str], judge_model: Path) -> EvaluationOptions:
    return EvaluationOptions(data=dict(data), judges={"wildguard": judge_settings(judge_model)})


@pytest.fixture(scope="module")
def judges(options: EvaluationOptions, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judges]:
    """The tiny judge in its own actor, with its own vLLM."""
    found, notes = find_judges(Suite.load("mergebench"), options, ["test"])
    assert notes == []
    with running_judges(
        found, EngineOptions(), tmp_path_factory.mktemp("log").joinpath, remedy="start again"
    ) as running:
        yield running


def test_a_judge_that_is_lost_again_and_again_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_answer: Any) -> None:
        raise RayActorError

    monkeypatch.setattr(ray, "get", lost)
    actor: Any = ActorHere(SimpleNamespace(judge=lambda _pairs: None))
    with pytest.raises(StoppedError, match=r"judge mine was lost 4 times under the same answers \(.*\): start again$"):
        RemoteJudge("mine", actor, "start again")([("a request", "a response")])


def test_a_judge_in_its_own_engine_decides_as_mergebench_says(
    engine: VLLMEngine, suite: Suite, options: EvaluationOptions, judges: Judges
) -> None:
    engine.restore_base()
    evaluator = Evaluator(short(suite), options, lambda: engine, judges)
    scores = evaluator.score("test")
    assert scores.judge_seconds > 0
    assert scores.judge_tokens > sum(task.items for task in scores.tasks.values())
    # Of the four kinds of answers, half do not parse: harmful in WildGuardTest, no success elsewhere, wrong in XSTest.
    assert {name: (task.label, task.value, task.judge_errors, task.items) for name, task in scores.tasks.items()} == {
        "wildguardtest": ("1 - micro_harm", 0.75, 4, 8),
        "harmbench": ("1 - micro_asr", 0.25, 4, 8),
        "do_anything_now": ("1 - macro_asr", 0.25, 4, 8),
        # Of safe requests the one that was not refused is right, of unsafe ones the one that was.
        "xstest": ("overall_accuracy", 0.25, 4, 8),
    }
    assert scores.domains["safety"].score == pytest.approx((0.25 + 0.75 + 0.75 + 0.25) / 4)
    assert "harmbench: 4 of 8 answers of its judge did not parse" in parse_error_lines(scores)
    check_rows(scores)
    shares = [evaluator.grade_share("test", Share(index, 3)) for index in range(3)]
    assert evaluator.combine("test", shares).tasks == scores.tasks


def check_rows(scores: Scores) -> None:
    """Each item keeps what the judge said of it."""
    kinds = list(ANSWERS.values()) * 2
    for task in SAFETY:
        assert [row["judgement"] for row in scores.items if row["task"] == task] == kinds
    values = [row["score"] for row in scores.items if row["task"] == "wildguardtest"]
    assert values == [0.0, 1.0, 0.0, 0.0] * 2


def test_without_the_judge_the_same_items_are_told_by_keywords_and_labelled_so(
    engine: VLLMEngine, suite: Suite, options: EvaluationOptions, judges: Judges
) -> None:
    engine.restore_base()
    judged, bare = (Evaluator(short(suite), options, lambda: engine, *with_judges) for with_judges in ([judges], []))
    scores = bare.score("test", ["safety"])
    assert {task.label for task in scores.tasks.values()} == {"keyword_refusal", "keyword_refusal_accuracy"}
    assert all(task.judge_errors is None for task in scores.tasks.values())
    assert not any(row["judgement"] for row in scores.items)
    assert judged.items_digest("test") != bare.items_digest("test")


def test_another_judge_makes_other_items(suite: Suite, options: EvaluationOptions) -> None:
    found, _ = find_judges(suite, options, ["test"])
    stricter = EvaluationOptions(judges={"wildguard": {**(options.judges["wildguard"] or {}), "max_answer_tokens": 8}})
    assert digests(found) != digests(find_judges(suite, stricter, ["test"])[0])
    roomier = EvaluationOptions(judges={"wildguard": {**(options.judges["wildguard"] or {}), "kv_cache_gib": 2.0}})
    assert digests(found) == digests(find_judges(suite, roomier, ["test"])[0])


def test_a_run_is_not_resumed_once_its_judge_has_changed(tmp_path: Path) -> None:
    trials = made_up_trials()
    items = {trial.split: trial.items_digest for trial in trials if trial.role != "specialist"}
    check_same_items(tmp_path, trials, items, items)
    with pytest.raises(InputError, match="on test were scored on other items, or with another judge"):
        check_same_items(tmp_path, trials, {**items, "test": "other"}, items | {"test": "another"})


def test_what_a_judge_leaves_open_is_neither_harm_nor_success(suite: Suite, data: Mapping[str, str]) -> None:
    tasks = load_tasks(short(suite), "test", EvaluationOptions(data=dict(data)), judges={"wildguard": "x"})
    open_verdict = {"harmful_request": True, "refusal": None, "harmful_response": None}
    values = {task.name: set(grade(task, [[["text"]]] * 8, [open_verdict] * 8)) for task in tasks}
    assert values == {name: {0.0} for name in SAFETY}
