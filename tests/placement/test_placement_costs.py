"""What a sweep takes is reckoned by rates: those that were measured here, else those that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergebench_ray.config import Sweep
from mergebench_ray.placement import Cluster, Placement, find_placement
from mergebench_ray.placement.answers import Answers
from mergebench_ray.placement.costs import Rates, estimate, keep_rates, known_rates
from mergebench_ray.placement.parts import ModelSizes

GIB = 1 << 30
RATES = Rates(device="cpu", source="a test", merge=1e9, load=1e9, read=1e9, work=1e9, engine_start=10.0)
SIZES = ModelSizes(
    parameters=100_000_000, merged=50_000_000, specialists=3, gram=0, calibration={}, heads={"num_attention_heads": 4}
)


def sweep_of(engines: int = 1, shards: int = 1) -> Sweep:
    return Sweep.model_validate(
        {
            "name": "x",
            "suite": "smollm2-mini",
            "methods": {"ties": {"density": {"low": 0.1, "high": 0.5}}},
            "search": {"trials": 20},
            "engine": {"count": engines},
            "bank": {"shards": shards},
        }
    )


def placed(sweep: Sweep, cluster: Cluster) -> Placement:
    found = find_placement(sweep, SIZES, {}, cluster)
    assert found is not None
    return found


def test_a_candidate_is_merging_loading_and_answers() -> None:
    sweep = sweep_of()
    answers = [Answers(what="candidates", least=1000, most=2000)]
    found = estimate(sweep, SIZES, placed(sweep, Cluster.alike(1, 64 * GIB)), 100, answers, 1, 50.0, RATES)
    assert found.merge_seconds == pytest.approx(5 * 50e6 * 2 / 1e9)
    assert found.load_seconds == pytest.approx(50e6 * 2 / 1e9)
    assert found.answer_seconds == pytest.approx(100 * 50 * 0.1)
    assert found.candidate_seconds == pytest.approx(0.5 + 0.1 + 500)
    start = 10 + 4 * 0.2
    assert found.hours[0] * 3600 == pytest.approx(start + 20 * 0.6 + 1000 * 5)
    assert found.hours[1] * 3600 == pytest.approx(start + 20 * 0.6 + 2000 * 5)


def test_engines_on_one_nodes_processor_share_it_and_those_of_other_nodes_do_not() -> None:
    sweep = sweep_of(engines=2)
    answers = [Answers(what="candidates", least=1000, most=1000)]
    together = estimate(sweep, SIZES, placed(sweep, Cluster.alike(1, 64 * GIB)), 100, answers, 1, 50.0, RATES)
    apart = estimate(sweep, SIZES, placed(sweep, Cluster.alike(2, 8 * GIB)), 100, answers, 1, 50.0, RATES)
    assert together.answer_seconds == pytest.approx(2 * apart.answer_seconds)
    assert together.hours[0] > 1.9 * apart.hours[0]
    # The bank's one shard is with one of them, so the other's weights come from there.
    assert apart.load_seconds > together.load_seconds


def test_rates_that_were_measured_here_take_the_place_of_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path))
    assert "as shipped" in known_rates("cpu").source
    keep_rates(RATES)
    assert known_rates("cpu") == RATES
    (tmp_path / "costs" / "cpu.json").write_text("{")
    assert "as shipped" in known_rates("cpu").source
