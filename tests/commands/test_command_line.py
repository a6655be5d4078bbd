"""What a shell's user tries first: version, help, the Tab key, one method."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from command_line import CommandLine
from mergebench_ray.methods import get_method, method_names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def test_the_version_is_the_packages(run: CommandLine) -> None:
    finished = run("--version")
    assert (finished.status, finished.out) == (0, f"mergebench-ray {version('mergebench_ray')}\n")


@pytest.mark.parametrize("command", [[], ["tune"], ["data", "check"]])
def test_every_command_takes_h_for_help(run: CommandLine, command: list[str]) -> None:
    short, long = run(*command, "-h"), run(*command, "--help")
    assert short.status == long.status == 0
    assert short.out == long.out
    assert "Usage" in short.out


def test_one_method_is_shown_with_its_source_and_what_its_hyper_parameters_may_be(run: CommandLine) -> None:
    finished = run("methods", "ties")
    assert finished.status == 0
    assert "arXiv 2306.01708" in finished.out
    assert (
        "density (default 0.2): Share of each task vector that is kept.\n    a number above 0 up to 1, or such "
        "a number for each specialist, or [{filter: ..., value: ...}, ...] by names of tensors\n" in finished.out
    )
    assert (
        "from -2 up to 3, or such a number for each specialist, or a list of them for layer groups, or {first: ..."
        in finished.out
    )
    assert "sum or mean or max" in finished.out
    assert json.loads(run("methods", "ties", "--json").out)["name"] == "ties"


@pytest.mark.parametrize("name", method_names())
def test_of_every_hyper_parameter_is_said_what_it_may_be(run: CommandLine, name: str) -> None:
    lines = run("methods", name).out.splitlines()
    said = [line.strip() for line in lines if line.startswith("    ")]
    assert len(said) == len(get_method(name).Parameters.model_fields)
    assert not {"", "None"} & {*said}


def test_sweeps_that_ship_are_listed_and_one_is_printed_as_its_file_is(run: CommandLine) -> None:
    assert "quickstart" in run("sweeps").out
    assert run("sweeps", "quickstart").out == (ROOT / "sweeps" / "quickstart.yaml").read_text(encoding="utf-8")
    assert len(json.loads(run("sweeps", "--json").out)) == len(list((ROOT / "sweeps").rglob("*.yaml")))
    assert "'quickstart'" in run.refused("sweeps", "quikstart")


def test_a_method_that_does_not_exist_is_refused_with_the_nearest_name(run: CommandLine) -> None:
    assert "'ties'" in run.refused("methods", "tise")


COMPLETIONS = {
    "do": ["doctor"],
    "methods t": ["task_arithmetic", "ties", "tsv_m"],
    "sweeps q": ["quickstart"],
    "tune q": ["quickstart"],
    "tune r": [],  # runs/, by the shell itself
    "tune mergebench/gemma-2-9": ["mergebench/gemma-2-9b-it", "mergebench/gemma-2-9b"],
    "data check smol": ["smollm2-mini"],
    "data check own": [],
    "status ": ["a-run", "runs/another"],
    "report a-run ru": ["runs/another"],
    "evaluate x --suite smol": ["smollm2-mini"],
    "evaluate x --split v": ["validation"],
    "evaluate x --suite smollm2-mini --tasks safety,ma": ["safety,math"],
    "evaluate x --suite smollm2-mini --tasks mini_s": ["mini_safety"],
    "evaluate x --suite nowhere --tasks ma": [],
}
"""Words behind which the Tab key is pressed, and what is offered; where it is nothing, shells offer files."""
TAB = """
import json, os, sys
from contextlib import redirect_stdout
from io import StringIO
from mergebench_ray.__main__ import main
found = {}
for words in json.loads(sys.argv[1]):
    line = f"mergebench-ray {words}"
    sys.argv = ["mergebench-ray"]
    asked = {"_MERGEBENCH_RAY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    os.environ.update(asked)
    try:
        with redirect_stdout(StringIO()) as out:
            main()
    except SystemExit:
        found[words] = out.getvalue().split()
print(json.dumps([found, sorted({"torch", "numpy", "pandas", "ray", "optuna", "vllm"} & {*sys.modules})]))
"""


def test_the_shell_completes_commands_and_names_without_a_slow_import(tmp_path: Path) -> None:
    for file in ("own.yaml", "a-run/sweep.yaml", "runs/another/sweep.yaml", "runs/empty/report.html"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    command = [sys.executable, "-c", TAB, json.dumps(list(COMPLETIONS))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found, imported = json.loads(done.stdout)
    assert found == COMPLETIONS
    assert imported == []
