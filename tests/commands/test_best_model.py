"""The best candidate's folder, which more trials may give to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergebench_ray.commands import best_model as module
from mergebench_ray.config import Recipe
from mergebench_ray.files import whole_folder
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import Trial
from mergebench_ray.scores import DomainScore, ObjectiveValue


def recipe(density: float) -> Recipe:
    return Recipe(
        method="ties",
        parameters={"density": density},
        base="b",
        base_digest="c",
        specialists={"math": "s"},
        specialist_digests={"math": "d"},
    )


class Writer:
    """Writes which model it was, and how often it did."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.written, self.is_killed = RunFolder(folder), 0, False
        self.card = "card"
        monkeypatch.setattr(module, "texts_beside", lambda *_: {"README.md": self.card})
        monkeypatch.setattr(module, "for_mergekit", lambda *_: ({"mergekit_config.yml": "models:"}, []))
        self.lost = 0
        self.bank = SimpleNamespace(
            merge=lambda recipe: recipe, holds=lambda _merged: self.written > self.lost, layout=None
        )
        monkeypatch.setattr(module, "write_merged", self._write)

    def _write(self, out: Path, bank: Any, base: Any, texts: Mapping[str, str]) -> None:
        self.written += 1
        with whole_folder(out) as folder:
            (folder / "model").write_text(texts["README.md"])
            if self.is_killed:
                raise KeyboardInterrupt
            if self.written <= self.lost:
                raise FileNotFoundError("/proc/1/fd/2")

    def best(self, density: float) -> None:
        anything: Any = SimpleNamespace(bank=self.bank)
        module.write_best(anything, recipe(density), anything, self.run, anything)

    def found(self) -> Recipe:
        assert (self.run.model_folder / "model").read_text() == "card"
        assert (self.run.best_folder / "mergekit_config.yml").read_text() == "models:"
        return Recipe.from_yaml(self.run.recipe_file)


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    return Writer(tmp_path, monkeypatch)


def test_a_winner_that_is_written_already_is_not_written_again(writer: Writer) -> None:
    writer.best(0.5)
    writer.best(0.5)
    assert (writer.found().parameters, writer.written) == ({"density": 0.5}, 1)


def test_the_card_of_a_winner_that_stays_says_what_is_so_now(writer: Writer) -> None:
    writer.best(0.5)
    writer.card = "chosen otherwise"
    writer.best(0.5)
    assert (writer.run.model_folder / "README.md").read_text() == "chosen otherwise"
    assert (writer.found().parameters, writer.written) == ({"density": 0.5}, 1)


def test_a_model_is_merged_and_written_again_where_a_shard_was_lost_meanwhile(writer: Writer) -> None:
    writer.lost = 2
    writer.best(0.5)
    assert (writer.found().parameters, writer.written) == ({"density": 0.5}, 3)


def test_all_recipes_of_a_front_are_written_and_those_of_an_earlier_one_are_not_kept(tmp_path: Path) -> None:
    bank: Any = SimpleNamespace(recipe=lambda _method, parameters: recipe(parameters["density"]))
    trials = [
        Trial("candidate", "ties", "validation", "d", "i", number, "ties", {"density": 0.1 * number})
        for number in range(1, 4)
    ]
    run = RunFolder(tmp_path)
    for members in (trials, trials[1:]):
        module.write_front(bank, members, run)
    assert sorted(path.name for path in run.front_folder.iterdir()) == ["ties-2.yaml", "ties-3.yaml"]
    assert Recipe.from_yaml(run.front_recipe_file("ties", 3)) == recipe(0.1 * 3)


def test_a_card_says_which_front_was_searched_for_and_how_one_of_it_was_chosen() -> None:
    aims = {"math": ObjectiveValue(0.5, 0.1), "safety": ObjectiveValue(0.75, 0.1)}
    test = Trial("candidate", "ties", "test", "d", "i", normalised_average=0.6, objectives=aims, choice="knee")
    domains = dict.fromkeys(aims, DomainScore(0.5, 0.1, 8))
    test = replace(test, domains=domains, differences={"plain average": (0.1, 0.05)})
    assert module.aim_of(test) == (
        "What the search was after: the front of share of math, share of safety, of which one was chosen by the knee. "
        "On test share of math 0.500 ± 0.100, share of safety 0.750 ± 0.100, in the normalised average 0.100 ± 0.050 "
        "above plain average"
    )


def test_another_winner_takes_the_place_of_the_first(writer: Writer) -> None:
    writer.best(0.5)
    writer.best(0.75)
    assert writer.found().parameters == {"density": 0.75}
    assert [path.name for path in writer.run.path.iterdir()] == ["best"]


def test_the_first_winner_stays_where_writing_another_is_interrupted(writer: Writer) -> None:
    writer.best(0.5)
    writer.is_killed = True
    with pytest.raises(KeyboardInterrupt):
        writer.best(0.75)
    assert writer.found().parameters == {"density": 0.5}
