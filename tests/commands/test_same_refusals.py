"""A wrong sweep or suite is refused with one and the same line by every command that reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial
from task_files import capital_items, write_generation_task, write_lines
from tiny_models import tiny_llama, tiny_specialist

Change = Callable[[dict[str, Any], Path], None]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_specialist(folder / "facts", tiny_llama(folder / "base"), seed=1)
    return folder


@pytest.fixture
def workplace(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a suite of one task, in which a sweep is to be written."""
    (tmp_path / "tasks").mkdir()
    write_generation_task(tmp_path / "tasks")
    write_suite(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_suite(folder: Path, metric: str = "exact_match", **changes: Any) -> None:
    domains = {"facts": {"tasks": {"capital_text": metric}}}
    content = {"name": "small", "tasks_folder": "tasks", "domains": domains, "max_model_len": 128, **changes}
    (folder / "suite.yaml").write_text(to_yaml(content))


def write_sweep(folder: Path, models: Path, **changes: Any) -> None:
    content = {
        "name": "s",
        "suite": "suite.yaml",
        "base": str(models / "base"),
        "specialists": {"facts": str(models / "facts")},
        "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}},
        **changes,
    }
    (folder / "sweep.yaml").write_text(to_yaml(content))


def refusals_of_the_sweep(run: CommandLine) -> set[str]:
    """What `tune`, `plan` and `data check` say."""
    lines = {run.refused("tune", "sweep.yaml", "--out", "run"), run.refused("plan", "sweep.yaml")}
    assert not Path("run").exists()
    finished = run("data", "check", "sweep.yaml")
    if finished.status == 2:
        return {*lines, finished.err.strip()}
    # What is not there is listed, not refused.
    assert finished.status == 1, finished
    (line,) = lines
    assert line.removeprefix("error: ") in finished.err
    return lines


SWEEPS: dict[str, dict[str, Any]] = {
    "unknown key": {"serch": {}},
    "unknown suite": {"suite": "smollm"},
    "unknown method": {"methods": {"tise": None}},
    "hyper-parameter out of its range": {"methods": {"ties": {"density": {"low": 0.1, "high": 1.5}}}},
    "nothing to search": {"methods": {"ties": {"density": 0.2}}},
    "unknown sampler": {"search": {"sampler": "NoSampler"}},
    "sampler option of another type": {"search": {"sampler_options": {"n_startup_trials": "many"}}},
    "storage of no kind": {"search": {"storage": "nowhere://"}},
    "specialist of another name": {"specialists": {"fact": "./nowhere"}},
    "specialist that is not there": {"specialists": {"facts": "./nowhere"}},
    "base that is not there": {"base": "./nowhere"},
    "unknown domain": {"evaluation": {"domains": ["fact"]}},
    "data that no task reads": {"evaluation": {"data": {"owner/name": "x.jsonl"}}},
    "judge that no task asks": {"evaluation": {"judges": {"strict": "./nowhere"}}},
    "samples of nobody": {"calibration": {"data": {"fact": "x.jsonl"}}},
    "unknown transport": {"engine": {"transport": "nccl"}},
}


@pytest.mark.parametrize("changes", SWEEPS.values(), ids=SWEEPS.keys())
def test_a_wrong_sweep_is_one_line_for_all_commands(
    run: CommandLine, workplace: Path, models: Path, changes: dict[str, Any]
) -> None:
    write_sweep(workplace, models, **changes)
    assert len(refusals_of_the_sweep(run)) == 1


def test_a_warm_start_of_nothing_or_of_other_models_is_one_line_for_all_commands_that_would_use_it(
    run: CommandLine, workplace: Path, models: Path
) -> None:
    write_sweep(workplace, models, search={"warm_start": "runs/*"})

    def refusals() -> set[str]:
        return {run.refused("tune", "sweep.yaml", "--out", "run"), run.refused("plan", "sweep.yaml")}

    [line] = refusals()
    assert "search.warm_start: 'runs/*' matches no folder" in line
    TrialStore(workplace / "runs" / "a").append(Trial("base", "base", "validation", "another", "items"))
    write_sweep(workplace / "runs" / "a", models)
    [line] = refusals()
    assert "runs/a is a run of other models: the base is not this sweep's" in line
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"search": {"budget": {"gpu_hours": 1}}},
            "search.budget.gpu_hours: there are no GPUs; give minutes or tokens",
        ),
        (
            {"engine": {"transport": "gpu"}},
            "sweep s, engine.transport: gpu reads weights from GPUs, and there are none; use shared_memory",
        ),
    ],
)
def test_what_needs_gpus_on_a_machine_without_is_one_line_for_tune_and_plan_and_makes_no_folder(
    run: CommandLine,
    workplace: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_sweep(workplace, models, **changes)
    lines = {run.refused("tune", "sweep.yaml", "--out", "run"), run.refused("plan", "sweep.yaml")}
    lines.add(run.refused("plan", "sweep.yaml", "--nodes", "2"))
    [line] = lines
    assert problem in line
    assert not Path("run").exists()


def no_file(folder: Path) -> None:
    (folder / "tasks" / "test.jsonl").unlink()


SUITES: dict[str, Callable[[Path], None]] = {
    "unknown key": lambda folder: write_suite(folder, domain={}),
    "unknown metric": lambda folder: write_suite(folder, "exact_mach"),
    "unknown filter": lambda folder: write_suite(folder, "exact_match,hole"),
    "unknown task": lambda folder: write_suite(folder, domains={"facts": {"tasks": {"capital_txt": "acc"}}}),
    "no folder of tasks": lambda folder: write_suite(folder, tasks_folder="task"),
    "no data file": no_file,
    "examples that are scored": lambda folder: write_generation_task(
        folder / "tasks", "capital_text", num_fewshot=1, fewshot_split="test"
    ),
    "no room for a prompt": lambda folder: (
        write_suite(folder, max_model_len=16)
        or write_generation_task(folder / "tasks", generation_kwargs={"until": ["."], "max_gen_toks": 20})
    ),
    "programs that nobody allowed": lambda folder: write_generation_task(folder / "tasks", unsafe_code=True),
}


@pytest.mark.parametrize("spoil", SUITES.values(), ids=SUITES.keys())
def test_a_wrong_suite_is_one_line_for_all_commands(
    run: CommandLine, workplace: Path, models: Path, spoil: Callable[[Path], None]
) -> None:
    write_sweep(workplace, models)
    spoil(workplace)
    assert {run.refused("evaluate", models / "base", "--suite", "suite.yaml")} == refusals_of_the_sweep(run)


def test_items_that_lack_a_field_are_one_line_for_all_commands_that_read_them(
    run: CommandLine, workplace: Path, models: Path
) -> None:
    write_sweep(workplace, models)
    first, second = capital_items(6, 2)
    write_lines(workplace / "tasks" / "test.jsonl", [first, {**second, "city": None}])
    lines = [
        run.refused("tune", "sweep.yaml", "--out", "run"),
        run.refused("plan", "sweep.yaml"),
        run.refused("evaluate", models / "base", "--suite", "suite.yaml"),
    ]
    assert len(set(lines)) == 1
    assert "field 'city' is missing" in lines[0]


def test_a_sweep_that_does_not_fit_is_refused_by_plan_as_by_tune(
    run: CommandLine, workplace: Path, models: Path
) -> None:
    write_sweep(workplace, models)
    finished = run("plan", "sweep.yaml")
    assert (finished.status, finished.out.splitlines()[-1]) == (0, "fits")
    finished = run("plan", "sweep.yaml", "--host-memory", "0.001")
    assert finished.status == 2
    assert finished.err.startswith("error: sweep s: ")


def test_a_base_without_the_chat_template_that_is_asked_for_is_one_line_for_all_commands_that_ask(
    run: CommandLine, workplace: Path, models: Path
) -> None:
    for name in ("base", "facts"):
        shutil.copytree(models / name, workplace / name)
        (workplace / name / "chat_template.jinja").unlink()
    write_sweep(workplace, workplace, evaluation={"apply_chat_template": True})
    lines = {run.refused("tune", "sweep.yaml", "--out", "run"), run.refused("plan", "sweep.yaml")}
    lines.add(run.refused("evaluate", workplace / "base", "--suite", "suite.yaml", "--apply-chat-template"))
    [line] = lines
    assert "its tokenizer has no chat template; leave apply_chat_template out" in line


def test_a_search_that_would_see_the_items_of_its_test_is_one_line_for_the_commands_of_sweeps(
    run: CommandLine, workplace: Path, models: Path
) -> None:
    write_generation_task(workplace / "tasks", test_split=None)
    write_sweep(workplace, models)
    [line] = refusals_of_the_sweep(run)
    assert "task capital_text: search and test would have the same items, those of its split 'validation'" in line
