"""Plain mistakes are answered before anything that takes seconds to import, and leave nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import CommandLine

SWEEP = "name: x\nsuite: smollm2-mini\nmethods:\n  ties: {density: {low: 0.1, high: 0.5}}\n"
FILES = {
    "empty.yaml": "",
    "good.yaml": SWEEP,
    "key.yaml": f"{SWEEP}serch: {{}}\n",
    "parameter.yaml": SWEEP.replace("0.5", "1.5"),
    "reference.yaml": f"{SWEEP}base: ./nowhere\n",
    "suite.yaml": SWEEP.replace("smollm2-mini", "nope"),
    "sampler.yaml": f"{SWEEP}search: {{sampler_options: {{n_startup_trials: many}}}}\n",
    "parts.yaml": "name: x\nsuite: smollm2-mini\nmethods: {regmean: {}}\nmerged: {embeddings: true}\n",
    "storage.yaml": f"{SWEEP}search: {{storage: 'nowhere://'}}\n",
    "passthrough.yml": "models: [{model: ./file}]\nmerge_method: passthrough\n",
    "from.yml": "models: [{model: ./a, parameters: {weight: x}}]\nmerge_method: ties\nbase_model: ./file\n",
    "there.yml": "models: [{model: ./nowhere}]\nmerge_method: ties\nbase_model: ./file\nparameters: {weight: 1}\n",
    "file": "",
}
MERGE = ["merge", "--method", "ties", "--base", "./file", "--out", "out", "--specialist"]
COMMANDS = [
    ["tune", "empty.yaml"],
    ["tune", "missing.yaml"],
    ["tune", "key.yaml"],
    ["tune", "parameter.yaml"],
    ["tune", "good.yaml", "--set", "search.trials=many"],
    ["tune", "reference.yaml"],
    ["tune", "suite.yaml"],
    ["tune", "sampler.yaml"],
    ["tune", "storage.yaml"],
    ["tune", "parts.yaml"],
    ["tune", "good.yaml", "--out", "file"],
    ["plan", "parameter.yaml"],
    [*MERGE, "math=./nowhere"],
    [*MERGE, "a/b=./file"],
    [*MERGE, "math=./file", "--set", "density=2"],
    [*MERGE, "math=./file", "--merged", "head=true"],
    [*MERGE, "math=./file", "--suite", ""],
    [*MERGE, "math=./file", "--suite", "smollm2-mini"],
    [*MERGE, "math=./file", "--shards", "100000000"],
    [*MERGE, "math=./file", "--calibration", "math=x.jsonl"],
    ["merge", "--method", "regmean", *MERGE[3:], "math=./file"],
    ["merge", "--recipe", "key.yaml", "--out", "out"],
    ["merge", "passthrough.yml", "--out", "out"],
    ["merge", "from.yml", "--out", "out"],
    ["merge", "there.yml", "--out", "out"],
    ["merge", "there.yml", "--recipe", "from.yml", "--out", "out"],
    ["merge", "there.yml", "--out", "out", "--method", "ties"],
    ["tune", "--from", "from.yml", "--set", "suite=smollm2-mini"],
    ["tune", "--from", "there.yml"],
    ["tune"],
    ["plan", "--from", "missing.yml"],
    ["bench", "--model", "./nowhere"],
    ["bench", "--json", "file"],
    ["evaluate", "./nowhere", "--suite", "smollm2-mini"],
    ["evaluate", "./file", "--suite", "smollm2-mini", "--tasks", ""],
    ["tune", "good.yaml", "--address", "127.0.0.1:1"],
    ["tune", "good.yaml", "--dashboard-port", "0"],
    ["tune", "good.yaml", "--dashboard-port", "65536"],
    [*MERGE, "math=./file", "--address", "nonsense"],
    ["evaluate", "./file", "--suite", "smollm2-mini", "--address", "127.0.0.1:1"],
    ["push", ".", "s3://bucket/model"],
    ["push", ".", "./model"],
    ["push", ".", "owner/name"],
    ["verify", "."],
    ["verify", "./nowhere"],
    ["train-specialists", "--out", "/proc/x"],
    ["train-specialists", "--out", "new", "--domains", "maths"],
    ["data", "check", "suite.yaml"],
    ["tune", "good.yaml", "--nope"],
]
# In one process: each command needs none of the slow packages, nor leaves one for the next.
PROGRAM = """
import json, sys
from mergebench_ray import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["mergebench-ray", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert ended.code == 2, (arguments, ended.code)
    slow = {"torch", "ray", "vllm", "transformers", "lm_eval", "datasets"} & set(sys.modules)
    assert not slow, (arguments, slow)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_plain_mistake_is_refused_before_torch_ray_or_vllm_are_imported(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (0, len(COMMANDS)), done.stderr
    assert all(line.startswith("error: ") for line in lines), done.stderr
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("option", ["--calibration", "--suite"])
def test_data_for_a_merge_that_reads_none_are_refused_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(folder)
    value = {"--calibration": "math=x.jsonl", "--suite": "smollm2-mini"}[option]
    line = CommandLine(capsys, monkeypatch).refused(*MERGE, "math=./file", option, value)
    assert line.startswith(f"error: {option}")
    assert "ties reads no data with these hyper-parameters; leave it out" in line


@pytest.mark.parametrize("reference", ["./" + "x" * 9000, "owner/name@" + "y" * 9000 + "+", "x" * 9000])
def test_of_a_very_long_reference_both_ends_are_shown_with_what_is_wrong_and_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.chdir(folder)
    line = CommandLine(capsys, monkeypatch).refused(*MERGE, f"math={reference}")
    assert len(line) < 600
    assert reference[:50] in line
    assert reference[-50:] in line
    assert "check the path" in line or "write MODEL" in line
