"""`evaluate` goes on where an engine is lost or hangs, and ends in one line where that does not help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from mergebench_ray.commands import evaluate as module
from mergebench_ray.errors import StoppedError
from mergebench_ray.judges.judges import Judges
from recorded_scorer import Parts

ADAPTED: Any = SimpleNamespace(ref=SimpleNamespace(adapter="adapter"))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Parts:
    parts = Parts(monkeypatch, tmp_path, engines=2)
    monkeypatch.setattr(module, "score_together", lambda actors, split: parts._answer(actors, split, None, {})[0])
    return parts


def test_a_model_is_loaded_and_scored_again_where_an_engine_was_lost(parts: Parts) -> None:
    parts.loses(index=1)
    assert module._score(parts.supervisor, ADAPTED, ADAPTED, "test", with_items=False)[0].domains["math"].score == 0.4
    assert parts.asked == [(2, "test")] * 2
    assert [len(one.actor.loaded) for one in parts.handles] == [2, 1, 1]
    assert "engine 1 was lost (its process was killed or crashed): another one took its place" in parts.said[0]


def test_a_model_under_which_engines_are_lost_again_and_again_is_one_line(parts: Parts) -> None:
    parts.loses(times=3)
    with pytest.raises(StoppedError, match=r"3 engines were lost while .*; start the same command again"):
        module._score(parts.supervisor, ADAPTED, ADAPTED, "test", with_items=False)


def test_engines_of_which_none_starts_are_one_line_without_a_log_or_a_run_to_resume(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(value: Any) -> Any:
        error = RayActorError()
        error.actor_id = parts.handles[-1].id
        raise error

    nobody = Judges({}, {}, ())
    monkeypatch.setattr(module, "Watchdog", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(module.ray, "get", lost)
    said = r"no other is left: give it more memory, and start the same command again$"
    with pytest.raises(StoppedError, match=said), module._running(parts._start, 1, False, nobody, print):
        pytest.fail("an engine is up")


def test_engines_and_judges_are_watched_until_they_end(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[Callable[[], list[str]]] = []
    closed: list[bool] = []

    def watchdog(actors: Callable[[], list[str]], headless: Any) -> Any:
        watched.append(actors)
        return SimpleNamespace(close=lambda: closed.append(True))

    monkeypatch.setattr(module, "Watchdog", watchdog)
    with module._running(parts._start, 2, False, Judges({}, {}, ("judge",)), print) as engines:
        parts.loses()
        monkeypatch.setattr(parts, "supervisor", engines)
        module._score(engines, ADAPTED, ADAPTED, "test", with_items=False)
        assert watched[0]() == [*(one.id for one in engines.actors), "judge"]
        assert closed == []
    assert closed == [True]
