"""Judges: which are found for a suite, which are refused, what room they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from mergebench_ray.checkpoints import resolve
from mergebench_ray.commands.sweep_models import find_checked_judges
from mergebench_ray.config import Domain, EngineOptions, Suite, Sweep
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.judge import Judge
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.engines.environment import engine_dtype
from mergebench_ray.errors import InputError
from mergebench_ray.judges.judge_engine import FoundJudge
from mergebench_ray.judges.judges import (
    _check_gpus,
    find_judges,
)
from mergebench_ray.placement import Cluster, make_plan
from mergebench_ray.tasks.loading import load_tasks
from tiny_judge import SAFETY, judge_settings, tiny_judge
from tiny_models import tiny_adapter, tiny_llama


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judge(tmp_path_factory.mktemp("models") / "judge")


@pytest.fixture
def suite() -> Suite:
    return Suite.load("mergebench").only_tasks(SAFETY, "test")


def test_a_gated_judge_that_nobody_asked_for_is_missing_and_a_line_says_what_counts_instead(suite: Suite) -> None:
    found, (note,) = find_judges(suite, EvaluationOptions(), ["test"])
    assert found == {}
    assert "without judge wildguard (model allenai/wildguard:" in note
    assert "harmbench counts keyword_refusal, " in note
    assert note.endswith("xstest counts keyword_refusal_accuracy")
    assert "switched off" in find_judges(suite, EvaluationOptions(judges={"wildguard": None}), ["test"])[1][0]


def test_a_judge_is_needed_only_by_tasks_that_are_scored(judge_model: Path) -> None:
    options = EvaluationOptions(judges={"wildguard": judge_settings(judge_model)})
    others = Suite.load("mergebench").only_tasks(["ifeval", "gsm8k_cot"], "test")
    assert find_judges(others, options, ["test"]) == ({}, [])
    proxies = Suite.load("mergebench-published-proxies").only_tasks(["wildjailbreak_harmful"], "validation")
    assert list(find_judges(proxies, options, ["validation"])[0]) == ["wildguard"]


@pytest.mark.parametrize(
    ("judges", "expected"),
    [
        ({"wildgard": "./x"}, "no judge 'wildgard'; did you mean 'wildguard'"),
        ({"wildguard": "./no-such-folder"}, "judge wildguard: model ./no-such-folder: no such file"),
        ({"wildguard": "allenai/wildguard"}, "judge wildguard: model allenai/wildguard: not in the local cache"),
        ({"wildguard": {"modell": "x"}}, "evaluation.judges.wildguard: unknown key 'modell'; did you mean 'model'"),
        ({"wildguard": {"prompt": "Is it bad?"}}, "needs {response}"),
        ({"wildguard": {"max_answer_tokens": 9000}}, "max_answer_tokens 9000 leaves no room for a prompt"),
        ({"wildguard": {"stop": [""]}}, "an empty text would end every answer"),
        ({"wildguard": {"temperature": -1}}, "evaluation.judges.wildguard: temperature = -1"),
        ({"wildguard": {"parser": "wildgard"}}, "no parser 'wildgard'; did you mean 'wildguard'"),
        ({"wildguard": {"parser": "mine.parse"}}, "parser 'mine.parse' not found"),
    ],
)
def test_a_judge_that_was_asked_for_and_cannot_be_had_is_an_error(
    suite: Suite, judge_model: Path, judges: dict[str, Any], expected: str
) -> None:
    wanted = judges.get("wildguard")
    if isinstance(wanted, dict) and "parser" in wanted:
        judges = {"wildguard": {**wanted, "model": str(judge_model)}}
    with pytest.raises(InputError) as error:
        find_judges(suite, EvaluationOptions(judges=judges), ["test"])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_judge(suite: Suite, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_adapter(tmp_path / "adapter", base, seed=0)
    with pytest.raises(InputError, match="adapter"):
        find_judges(suite, EvaluationOptions(judges={"wildguard": f"{base}+{adapter}"}), ["test"])  # type: ignore[dict-item]


def test_a_parser_may_lie_beside_the_tasks(judge_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def parse(answer):\n    return {'bad': answer == 'bad'}\n")
    judge = Judge(**judge_settings(judge_model, parser="mine.parse"))
    found = FoundJudge("mine", judge, resolve(str(judge_model)), tmp_path)
    assert found.find_parser()("bad") == {"bad": True}


def test_where_no_task_needs_a_judge_one_that_is_named_is_refused_with_a_reason() -> None:
    with pytest.raises(InputError, match="suite smollm2-mini has no judge 'guard'; its tasks need none"):
        find_judges(Suite.load("smollm2-mini"), EvaluationOptions(judges={"guard": {"model": "x"}}), ["test"])


@pytest.mark.parametrize(
    ("judges", "expected"),
    [
        ("judges: {mine: mine.yaml}\n", "mine.yaml: unknown key 'promt'; did you mean 'prompt'"),
        ("judges: {mine: gone.yaml}\n", "gone.yaml: no such file"),
        ("judges: {mine: 3}\n", "judges.mine"),
        ("judges: [mine]\n", "judges"),
        (
            "judges: {mine: {model: m, parser: wildgard, prompt: '{response}'}}\n",
            "judge mine: no parser 'wildgard'; did you mean 'wildguard'",
        ),
    ],
)
def test_what_a_suite_says_of_its_judges_is_checked_where_it_stands(tmp_path: Path, judges: str, expected: str) -> None:
    (tmp_path / "mine.yaml").write_text("model: m\nparser: wildguard\npromt: '{response}'\n")
    file = tmp_path / "suite.yaml"
    file.write_text("name: s\nlm_eval_folders: [triviaqa]\ndomains: {a: {tasks: {triviaqa: exact_match}}}\n" + judges)
    with pytest.raises(InputError) as error:
        find_judges(Suite.load(str(file)), EvaluationOptions(), ["test"])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_judge_whose_model_is_too_short_for_its_answers_is_refused(suite: Suite, judge_model: Path) -> None:
    long = judge_settings(judge_model, max_answer_tokens=5000)
    with pytest.raises(
        InputError, match=r"max_answer_tokens 5000 leaves no room for a prompt in the .* tokens of its model"
    ):
        find_judges(suite, EvaluationOptions(judges={"wildguard": long}), ["test"])


def test_a_task_without_its_judge_and_without_another_metric_is_refused(suite: Suite) -> None:
    tasks = {
        name: how.model_copy(update={"without_judge": None}) for name, how in suite.domains["safety"].tasks.items()
    }
    bare = suite.model_copy(update={"domains": {"safety": Domain(tasks=tasks)}})
    with pytest.raises(InputError, match="wildguardtest: needs the judge wildguard"):
        load_tasks(bare, "test", EvaluationOptions())


def test_a_wrong_judge_on_the_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, judge_model: Path
) -> None:
    run = CommandLine(capsys, monkeypatch)
    asked = ("evaluate", str(judge_model), "--suite", "mergebench", "--tasks", "harmbench", "--judge")
    assert "judge wildguard: model ./gone: no such file" in run.refused(*asked, "wildguard=./gone")
    assert "no judge 'guard'" in run.refused(*asked, "guard=./gone")
    assert "write NAME=REF" in run.refused(*asked, "wildguard")


def test_the_planner_counts_a_judges_memory(suite: Suite, judge_model: Path, tmp_path: Path) -> None:
    base = resolve(str(tiny_llama(tmp_path / "base")))
    file = tmp_path / "sweep.yaml"
    content = {"name": "x", "suite": "mergebench", "methods": {"ties": None}}
    file.write_text(to_yaml({**content, "evaluation": {"judges": {"wildguard": judge_settings(judge_model)}}}))
    sweep = Sweep.from_yaml(file)
    judges, _ = find_judges(suite, sweep.evaluation, ["test"])
    parameters = sum(tensor.numel for tensor in judges["wildguard"].checkpoint.tensors.values())
    host = make_plan(sweep, base, {"a": base}, Cluster.alike(1, 64 << 30), judges=judges)
    assert host.placement is not None
    [judge] = host.placement.of("judge")
    size = 2 if engine_dtype("auto") == "bfloat16" else 4
    assert judge.part.name == "judge wildguard"
    cache = int(judges["wildguard"].judge.kv_cache_gib * 2**30)
    assert judge.part.host_memory == size * parameters + cache + int(1.75 * 2**30)
    full = Cluster.alike(1, 64 << 30, 1, 16 << 30)
    assert make_plan(sweep, base, {"a": base}, full, judges=judges).problem is None
    crowded = Sweep.from_yaml(file, {"engine.gpu_memory_utilization": 0.9})
    problem = str(make_plan(crowded, base, {"a": base}, full, judges=judges).problem)
    assert "GPU memory" in problem
    assert problem.endswith("use engine.gpu_memory_utilization: 0.6")  # a judge has the rest


def test_engines_and_judges_that_ray_could_never_place_are_refused(suite: Suite, judge_model: Path) -> None:
    found, _ = find_judges(suite, EvaluationOptions(judges={"wildguard": judge_settings(judge_model)}), ["test"])
    _check_gpus(found, EngineOptions(num_gpus=0.5), 1)
    _check_gpus(found, EngineOptions(), 2)
    with pytest.raises(InputError, match=r"engines take 1 GPUs and judges 0\.4, the cluster has 1"):
        _check_gpus(found, EngineOptions(), 1)


def test_a_judge_on_more_workers_than_share_its_heads_is_refused(suite: Suite, judge_model: Path) -> None:
    options = EvaluationOptions(judges={"wildguard": judge_settings(judge_model, tensor_parallel_size=3)})
    with pytest.raises(InputError, match=r"judge wildguard: tensor_parallel_size = 3: .* num_attention_heads = 2"):
        find_checked_judges(suite, options, ["test"])
