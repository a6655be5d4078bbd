"""A race for the front: what is probably dominated is stopped, what may be on the front is scored in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import made_up_search
from made_up_races import DOMAINS, MEAN, WeightedMean, made_up_items, run_race
from made_up_search import MadeUpScorer, MadeUpSearch
from memory_storage import memory_storage
from mergebench_ray.config.race import RaceOptions
from mergebench_ray.runs.front import non_dominated
from mergebench_ray.runs.json_lines import JsonLines
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, searched
from mergebench_ray.search.race.front import FrontPool
from mergebench_ray.search.race.order import stratified_order
from mergebench_ray.search.race_choice import expected_share
from mergebench_ray.search.samplers import OWN_ERROR
from mergebench_ray.search.study import told_value

AIMS = [WeightedMean({one: float(one == name) for one in DOMAINS}) for name in DOMAINS]
for _aim, _name in zip(AIMS, DOMAINS):
    _aim.name = _name
PER_DOMAIN = 80


def front_race(qualities: Any, seed: int = 0, aims: Any = AIMS, **settings: Any) -> tuple[FrontPool, list[Any], Any]:
    """Candidates with a quality in each domain: their race, its decisions, and each one's true share, (k, domains)."""
    items = made_up_items(per_domain=PER_DOMAIN)
    source = np.random.default_rng(seed)
    difficulty = source.normal(0, 1, len(items))
    noise = source.normal(0, 1, (len(qualities), len(items)))
    by_item = np.repeat(np.asarray(qualities, dtype=float), PER_DOMAIN, axis=1)
    answers = (by_item > difficulty + 0.5 * noise).astype(float)
    order = stratified_order(items, seed)
    race = FrontPool(items.taken(order), MEAN, several=aims, **settings)
    shares = np.stack([answers[:, PER_DOMAIN * place :][:, :PER_DOMAIN].mean(axis=1) for place in range(3)], axis=1)
    return race, run_race(race, answers[:, order]), shares


def test_what_is_worse_in_everything_is_stopped_and_specialists_of_everything_are_scored_in_full() -> None:
    specialists = [[1.5, -1, -1], [-1, 1.5, -1], [-1, -1, 1.5], [0.5, 0.5, 0.5]]
    worse = [[-1.5, -1.5, -1.5]] * 10
    for seed in range(5):
        race, _, _ = front_race([*specialists, *worse], seed)
        assert race.finished() == [0, 1, 2, 3]
        assert all(race.board.answered(number) < 0.6 * race.items for number in range(4, 14))


def test_the_front_of_all_items_is_seldom_stopped() -> None:
    lost, members, asked = 0, 0, 0.0
    for seed in range(12):
        source = np.random.default_rng(100 + seed)
        race, _, shares = front_race(source.normal(0, 1, (14, 3)) + source.normal(0, 1, (14, 1)), seed)
        on_front = np.flatnonzero(non_dominated(shares)).tolist()
        members += len(on_front)
        lost += len(set(on_front) - set(race.finished()))
        asked += sum(race.board.answered(number) for number in range(14)) / 14 / race.items / 12
    assert lost <= 0.1 * members
    assert asked < 0.9


def test_nothing_is_stopped_on_a_few_items_of_a_task() -> None:
    race, decided, _ = front_race([[1, 1, 1], *[[-1, -1, -1]] * 5])
    assert race.first_look == 40
    assert min(one.answered for one in decided if one.action == "stop") >= 40


def test_a_minimised_objective_is_better_when_lower() -> None:
    turned = WeightedMean({**dict.fromkeys(DOMAINS, 0.0), "safety": 1.0}, "minimize")
    turned.name = "safety"
    race, decided, shares = front_race([[1, 1, -1.5], [1, 1, 1.5], [-1, -1, 1.5]], aims=[*AIMS[:2], turned])
    assert race.state(0) == "done"
    assert race.state(2) == "stopped"
    values = decided[-1].why["value"]
    assert set(values) == set(DOMAINS)
    assert race.estimates(0)["safety"].value == pytest.approx(shares[0, 2])
    assert json.loads(json.dumps(decided[-1].record()))


def test_a_race_for_a_front_is_expected_to_ask_more() -> None:
    assert expected_share(RaceOptions(kind="pool"), 3) == (0.25, 1.0)
    assert expected_share(RaceOptions(kind="pool"), 1) < (0.25, 1.0)
    assert expected_share(RaceOptions(kind="none"), 3) == (1.0, 1.0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_up_search, "answer", made_up_search.trade_off)


RACED: dict[str, Any] = {
    **{"trials": 16, "objective": list(made_up_search.DOMAINS), "sampler": "RandomSampler"},
    "race": {"kind": "pool", "survivors": 4},
}


def searching(folder: Path, storage: optuna.storages.BaseStorage) -> MadeUpSearch:
    return MadeUpSearch(folder, MadeUpScorer(), RACED, storage=storage)


def table(folder: Path) -> list[Trial]:
    rows = searched(TrialStore(folder).trials())
    return [Trial.from_json(one.to_json()) for one in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_search_for_a_front_races_and_its_study_is_told_estimates_of_all_objectives(tmp_path: Path) -> None:
    storage = memory_storage()
    one = searching(tmp_path, storage)
    one.drive()
    stopped = [row for row in table(tmp_path) if row.role == "stopped"]
    assert stopped
    assert one.scorer.asked < 16 * 120
    first = stopped[0]
    assert list(first.estimates) == list(made_up_search.DOMAINS)
    assert first.estimate is not None
    told = told_value(first)
    assert told == [found.value for found in first.estimates.values()]
    assert first.flat()["estimate.math"] == first.estimates["math"].value
    trial = optuna.load_study(study_name="x", storage=storage).trials[first.number]
    assert trial.values == told
    assert len(trial.user_attrs[OWN_ERROR]) == 3
    lines = JsonLines(one.run.decisions_file).read()
    ends = next(line for line in lines if line.get("action") == "stop")
    assert set(ends["why"]) == {"value", "chance", "threshold", "rival", "compared"}


class KilledError(Exception):
    """Ends a sitting in the middle."""


@pytest.mark.usefixtures("here")
@pytest.mark.slow
def test_a_race_for_a_front_that_was_killed_goes_on_as_the_calm_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = searching(tmp_path / "calm", memory_storage())
    calm.drive()
    before, writes, storage = JsonLines.append, [0], memory_storage()

    def append(self: JsonLines, records: Any) -> None:
        writes[0] += 1
        if writes[0] == 30:
            raise KilledError
        before(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "append", append)
        with pytest.raises(KilledError):
            searching(tmp_path / "killed", storage).drive()
    searching(tmp_path / "killed", storage).drive()
    assert [(row.role, row.objectives, row.estimates) for row in table(tmp_path / "killed")] == [
        (row.role, row.objectives, row.estimates) for row in table(tmp_path / "calm")
    ]
    assert (tmp_path / "killed/decisions.jsonl").read_text() == calm.run.decisions_file.read_text()
