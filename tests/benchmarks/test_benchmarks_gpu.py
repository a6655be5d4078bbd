"""The checks for a machine with a GPU follow the code: they run here, on the CPU, on models of a few entries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from made_up_trials import made_up_trials
from mergebench_ray import merge
from mergebench_ray.methods import method_names
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trial_store import TrialStore
from tiny_models import tiny_llama, tiny_specialist

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(autouse=True)
def scripts_can_be_imported(without_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.slow
def test_the_check_of_passes_and_bank_runs_all_its_stages(tmp_path: Path) -> None:
    import gpu_check

    out = tmp_path / "figures.json"
    options = {"device": "cpu", "shape": "tiny", "methods": "task_arithmetic", "scratch": tmp_path, "out": out}
    assert gpu_check.main([word for name, value in options.items() for word in (f"--{name}", str(value))]) == 0
    figures = json.loads(out.read_text())
    assert {"machine", *gpu_check.STAGES} == set(figures)
    assert figures["kernels"]["task_arithmetic"]["eager_differs"] == 0
    assert figures["shards"]["task_arithmetic, 3 shards"] == {"differs": 0}
    assert {"merge_2_s", "to_host_2_s"} < {*figures["bank"]["task_arithmetic"]}
    assert figures["ipc"]["sums_differ"] == 0
    assert figures["ipc"]["there"] == "cpu"


@pytest.mark.parametrize(
    ("figures", "found"),
    [
        ({"kernels": {"ties": {"eager_s": 3, "eager_differs": 2}}}, ["kernels: ties: eager_differs 2"]),
        ({"kernels": {"dare": {"compiled_unwritten": 1}}}, ["kernels: dare: compiled_unwritten 1"]),
        ({"bank": {"error": "ValueError: x", "load_s": 1}, "ipc": {"sums_differ": 0}}, ["bank: error ValueError: x"]),
    ],
)
def test_what_is_wrong_is_found_in_the_figures(figures: dict[str, Any], found: list[str]) -> None:
    import gpu_check

    assert list(gpu_check.findings(figures)) == found


def finished_run(folder: Path, models: Path) -> Path:
    """A run whose best model is a merge of tiny ones."""
    base = tiny_llama(models / "base")
    specialists = {name: str(tiny_specialist(models / name, base, seed=i)) for i, name in enumerate("ab")}
    run = RunFolder(folder)
    merged = merge(method="model_soup", base=str(base), specialists=specialists, out=run.model_folder)
    run.recipe_file.write_text(merged.recipe.to_yaml())
    store = TrialStore(folder)
    for trial in made_up_trials(3):
        store.append(trial)
    return folder


def test_the_figures_of_a_search_are_told_beside_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tune_gpu

    run, out = finished_run(tmp_path / "run", tmp_path), tmp_path / "figures.json"
    assert tune_gpu.main([str(run), "--figures-only", "--beside", str(run), "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["candidates"] == 3
    assert figures["scored_in_both"] > 3
    assert figures["largest_difference"] == 0
    assert figures["entries"] > 0
    assert figures["entries_that_differ"] == 0


@pytest.mark.slow
def test_the_code_of_every_method_for_a_card_rounds_as_a_cpu_does_and_moves_sixteen_bytes_at_a_time() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, FOLDER / "ptx_without_card.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    looked_at = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert {words.split()[0] for line in looked_at for words in line.partition(":")[0].split(", ")} == {*method_names()}
    right = ": 0 instructions round otherwise than a CPU, 0 move fewer than 4 bytes"
    # Some choices need another one beside them.
    other = (": the same kernel as of ", ": no merge (")
    assert all(line.endswith(right) or any(text in line for text in other) for line in looked_at)
    # Each kernel reads as many arrays at once as it has specialists, and the base.
    kernels = re.split(r"\n(?=\S)", done.stdout)
    wide = [int(found[1]) for one in kernels if (found := re.search(r"(\d+) ld\.global\.v4\.b32", one))]
    assert len(wide) == sum(line.endswith(right) for line in looked_at)
    assert min(wide) == 2  # slerp has a single specialist
    assert done.stdout.count("1 st.global.v4.b32") == len(wide)
    assert "div.rn.f32" in done.stdout


def test_a_method_whose_division_is_not_exact_is_found(tmp_path: Path) -> None:
    """What `pretend_there_is_a_card` does to a process stays there, so the counting alone is tried in this one."""
    pytest.importorskip("triton")
    import ptx_without_card

    counts = ptx_without_card.instructions(
        "\tdiv.full.f32 %f1, %f2, %f3;\n\t@%p1 ld.global.b16 %rs1, [%rd1];\n\tfma.rn.f32 %f;"
    )
    assert counts == {"div.full.f32": 1, "ld.global.b16": 1, "fma.rn.f32": 1}
    assert ptx_without_card.wrong(counts) == (2, 1)
