"""The sweep files that are shipped: valid, with the published names, and with data for every specialist."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergebench_ray.commands.data_check import data_check
from mergebench_ray.config import Suite, Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.methods import get_method
from mergebench_ray.search.space import Space

SWEEPS = Path(__file__).parents[2] / "sweeps"
DOMAINS = ["coding", "instruction", "math", "multilingual", "safety"]
# The released models, as the benchmark's authors spell them: names are case-sensitive on the hub.
FAMILIES = {
    "meta-llama/Llama-3.2-3B": "Llama-3.2-3B",
    "meta-llama/Llama-3.2-3B-Instruct": "Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B": "Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "Llama-3.1-8B-Instruct",
    "google/gemma-2-2b": "gemma-2-2b",
    "google/gemma-2-2b-it": "gemma-2-2b-it",
    "google/gemma-2-9b": "gemma-2-9b",
    "google/gemma-2-9b-it": "gemma-2-9b-it",
}
FIELDS = {
    "coding": ("instruction", "response"),
    "instruction": ("instruction", "output"),
    "math": ("query", "response"),
    "multilingual": ("inputs", "targets"),
    "safety": ("prompt", "response"),
}


def mergebench_sweeps() -> list[Sweep]:
    return [Sweep.from_yaml(path) for path in sorted((SWEEPS / "mergebench").glob("*.yaml"))]


@pytest.mark.parametrize("path", sorted(SWEEPS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_sweep_is_valid(path: Path) -> None:
    sweep = Sweep.from_yaml(path)
    suite = sweep.load_suite()
    _, specialists = sweep.model_references(suite)
    Space(sweep, list(specialists), 26)
    assert set(specialists) == set(DOMAINS)
    assert set(suite.domains) == set(DOMAINS)
    if any("fisher" in get_method(name).statistics for name in sweep.methods):
        assert set(suite.calibration) == set(specialists)


def test_mergebench_families_are_the_released_ones() -> None:
    sweeps = {sweep.base: sweep for sweep in mergebench_sweeps()}
    assert set(sweeps) == set(FAMILIES)
    for base, name in FAMILIES.items():
        assert sweeps[base].specialists == {domain: f"MergeBench/{name}_{domain}" for domain in DOMAINS}


def test_mergebench_calibration_data_are_the_released_ones() -> None:
    for name, source in Suite.load("mergebench").calibration.items():
        assert source.data == f"MergeBench/{name}_val"
        assert (source.prompt, source.response, source.template) == (*FIELDS[name], "alpaca")


def test_data_check_lists_calibration_data_of_sweeps_that_see_data() -> None:
    listed = {one.id: one for one in data_check(SWEEPS / "mergebench" / "gemma-2-2b.yaml")}
    assert {f"MergeBench/{name}_val" for name in DOMAINS} <= set(listed)
    assert listed["MergeBench/math_val"].tasks == ("calibration of math",)
    assert not any(one.id.startswith("MergeBench/") for one in data_check(SWEEPS / "quickstart.yaml"))


def test_the_search_over_all_methods_begins_where_the_authors_of_each_do() -> None:
    sweep = Sweep.from_yaml(SWEEPS / "all-methods.yaml")
    assert {point["method"] for point in sweep.search.points_to_evaluate} == set(sweep.methods)


def test_a_sweep_that_ships_is_known_by_its_name_where_no_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Sweep.from_yaml("mergebench/llama-3.2-3b") == Sweep.from_yaml(SWEEPS / "mergebench" / "llama-3.2-3b.yaml")
    assert data_check("quickstart") == data_check(SWEEPS / "quickstart.yaml")
    (tmp_path / "quickstart").write_text("name: mine\nsuite: smollm2-mini\nmethods: {model_soup: {}}\n")
    assert Sweep.from_yaml("quickstart").name == "mine"
    with pytest.raises(
        InputError, match="'quikstart': neither a file nor a sweep that ships; did you mean 'quickstart'"
    ):
        Sweep.from_yaml("quikstart")
