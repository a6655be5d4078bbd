"""Items in one order, looked at while others are asked: whoever stops, or goes on, gets the same scores."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors_here import ActorHere, fetch_here
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.evaluator import Evaluator
from mergebench_ray.evaluation.order import Order, Share
from mergebench_ray.evaluation.ordered_scoring import Look, OrderedScoring
from mergebench_ray.scores import ItemRow
from task_files import write_choice_task, write_generation_task, write_suite

PLACES = (7, 0, 11, 3, 9, 5, 1, 10, 2, 8, 6, 4)
"""All items of the two tasks, which have six each."""
ORDER = Order(PLACES, in_flight=3, looks=(4, 8))


@pytest.fixture
def evaluator(tmp_path: Path, engine: VLLMEngine) -> Evaluator:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_choice_task(folder)
    write_generation_task(folder)
    suite = write_suite(tmp_path, {"choice": {"capital_choice": "acc"}, "text": {"capital_text": "exact_match"}})
    engine.restore_base()
    return Evaluator(suite, EvaluationOptions(), lambda: engine)


@pytest.fixture
def whole(evaluator: Evaluator) -> list[ItemRow]:
    """Rows in the order, of one go without looks."""
    return fetched(evaluator, replace(ORDER, looks=()))


def fetched(evaluator: Evaluator, order: Order, share: Share = Share()) -> list[ItemRow]:  # noqa: B008
    items = {place: one for look in evaluator.looks("test", order, share) for place, one in look.items()}
    return [items[place].row for place in order.dealt(share) if place in items]


def together(evaluators: list[Evaluator], order: Order, **options: Any) -> OrderedScoring:
    handles: list[Any] = [ActorHere(one) for one in evaluators]
    return OrderedScoring(handles, "test", order, **options)


def all_looks(scoring: OrderedScoring) -> list[Look]:
    return list(iter(scoring.next_look, None))


def test_what_goes_on_to_an_end_is_asked_no_more(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_here(monkeypatch)
    order = replace(ORDER, looks=(), start=4, end=8, in_flight=None)
    [look] = evaluator.looks("test", order, Share())
    assert sorted(look) == sorted(PLACES[4:8])
    found = together([evaluator], replace(ORDER, looks=(), end=4))
    assert [one.count for one in all_looks(found)] == [4]
    scores, answered = found.finish()
    assert (len(scores.items), answered.count) == (4, 4)


def test_looks_come_in_the_order_and_each_is_complete(evaluator: Evaluator, whole: list[ItemRow]) -> None:
    looks = [sorted(look) for look in evaluator.looks("test", ORDER, Share())]
    assert looks == [sorted(PLACES[:4]), sorted(PLACES[4:8]), sorted(PLACES[8:])]
    assert fetched(evaluator, ORDER) == whole


def test_a_stop_at_the_first_look_throws_nothing_away(evaluator: Evaluator, engine: VLLMEngine) -> None:
    order = replace(ORDER, alone=4)
    whole = fetched(evaluator, replace(order, looks=()))
    assert fetched(evaluator, order) == whole
    fetched(evaluator, replace(order, looks=(), end=4))
    wanted = evaluator.spent().spent.tokens
    looks = evaluator.looks("test", order, Share())
    first = next(looks)
    assert sorted(first) == sorted(PLACES[:4])
    looks.close()
    assert evaluator.spent().spent.tokens == wanted
    assert {place: first[place].row for place in PLACES[:4]} == dict(zip(PLACES, whole[:4], strict=False))


def test_items_in_order_score_what_they_score_in_any_other(evaluator: Evaluator, whole: list[ItemRow]) -> None:
    usual = evaluator.score("test").items
    assert [row["score"] for row in whole] == [usual[place]["score"] for place in PLACES]
    assert [row["item"] for row in whole] == [usual[place]["item"] for place in PLACES]


def test_a_look_is_handed_out_before_the_others_are_answered(evaluator: Evaluator) -> None:
    assert len(fetched(evaluator, ORDER)) == len(PLACES)
    everything = evaluator.spent()
    with closing(evaluator.looks("test", ORDER, Share())) as looks:
        next(looks)
    part = evaluator.spent()
    assert 0 < part.spent.tokens < everything.spent.tokens
    assert 0 < part.spent.engine_seconds <= part.spent.seconds


def test_a_stop_keeps_what_was_fetched_and_the_next_candidate_is_scored_as_ever(
    evaluator: Evaluator, whole: list[ItemRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_here(monkeypatch)
    stopped = together([evaluator], ORDER)
    look = stopped.next_look()
    assert look is not None
    assert (look.count, look.rows) == (4, whole[:4])
    stopped.stop()
    assert stopped.next_look() is None
    scores, answered = stopped.finish()
    assert answered.count == 4
    assert scores.tokens > 0
    in_split = sorted(range(4), key=lambda turn: PLACES[turn])
    assert scores.items == [whole[turn] for turn in in_split]
    assert {domain: one.items for domain, one in scores.domains.items()} == {"choice": 2, "text": 2}
    assert fetched(evaluator, ORDER) == whole


def test_what_goes_on_from_a_look_ends_as_what_was_never_stopped(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_here(monkeypatch)
    calm = together([evaluator], ORDER)
    all_looks(calm)
    expected, _ = calm.finish()
    first = together([evaluator], ORDER)
    first.next_look()
    _, answered = first.finish()
    second = together([evaluator], replace(ORDER, start=4), before=answered)
    looks = all_looks(second)
    assert [look.count for look in looks] == [8, 12]
    scores, answered = second.finish()
    assert answered.count == 12
    assert scores.domains == expected.domains == evaluator.score("test").domains
    assert [row["score"] for row in scores.items] == [row["score"] for row in expected.items]
    assert scores.tokens >= expected.tokens


def test_it_goes_on_only_from_where_it_was_stopped_and_with_the_same_weights(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_here(monkeypatch)
    first = together([evaluator], ORDER)
    first.next_look()
    _, answered = first.finish()
    with pytest.raises(ValueError, match="the order starts at item 8"):
        together([evaluator], replace(ORDER, start=8), before=answered)
    other = replace(answered, graded=replace(answered.graded, version="other"))
    with pytest.raises(ValueError, match="the engines hold base, not other"):
        together([evaluator], replace(ORDER, start=4), before=other).finish()


@pytest.mark.parametrize("count", [2, 5])
def test_a_look_is_complete_when_all_engines_have_answered_their_part(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, whole: list[ItemRow], count: int
) -> None:
    fetch_here(monkeypatch)
    shares = [share_of(evaluator, ORDER, Share(index, count)) for index in range(count)]
    assert sorted(place for share in shares for look in share for place in look) == sorted(PLACES)
    for number, (begin, end) in enumerate(((0, 4), (4, 8), (8, 12))):
        assert {place for share in shares for place in share[number]} == set(PLACES[begin:end])

    apart = [OneAtATime(evaluator, ORDER, Share(index, count)) for index in range(count)]
    handles: list[Any] = [ActorHere(one) for one in apart]
    joined = OrderedScoring(handles, "test", ORDER)
    looks = all_looks(joined)
    assert [look.count for look in looks] == [4, 8, 12]
    rows = [row for look in looks for row in look.rows]
    assert [(row["item"], row["score"]) for row in rows] == [(row["item"], row["score"]) for row in whole]
    scores, _ = joined.finish()
    assert scores.domains == evaluator.score("test").domains


def share_of(evaluator: Evaluator, order: Order, share: Share) -> list[list[int]]:
    return [list(look) for look in evaluator.looks("test", order, share)]


class OneAtATime:
    """Stands for one of several evaluators, all on the only engine: its looks are there before they are asked for."""

    def __init__(self, evaluator: Evaluator, order: Order, share: Share) -> None:
        self._looks = list(evaluator.looks("test", order, share))
        self._spent = evaluator.spent()
        self.combine = evaluator.combine

    def looks(self, *_: Any) -> Any:
        yield from self._looks

    def spent(self) -> Any:
        return self._spent


def test_programs_are_graded_look_by_look(tmp_path: Path, engine: VLLMEngine) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    log = tmp_path / "graded"
    scorer = (
        "def score(documents, answers):\n"
        f"    with open({str(log)!r}, 'a') as file:\n"
        "        print(len(documents), file=file)\n"
        "    return [{'exact_match': 1.0} for _ in documents]\n"
    )
    (folder / "scorer.py").write_text(scorer)
    write_generation_task(folder, "programs", metadata={"version": 1.0, "batch_scorer": "scorer.score"})
    suite = write_suite(tmp_path, {"text": {"programs": "exact_match"}})
    engine.restore_base()
    evaluator = Evaluator(suite, EvaluationOptions(), lambda: engine)
    order = Order((3, 1, 0, 5, 2, 4), in_flight=2, looks=(3,))
    assert [list(look) for look in evaluator.looks("test", order, Share())] == [[0, 1, 3], [2, 4, 5]]
    assert log.read_text().split() == ["3", "3"]


def test_a_metric_that_exists_only_over_all_items_is_refused_by_its_task(tmp_path: Path, engine: VLLMEngine) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    metrics = [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]
    write_generation_task(folder, "translation", metric_list=metrics)
    suite = write_suite(tmp_path, {"text": {"translation": "bleu"}})
    evaluator = Evaluator(suite, EvaluationOptions(test_items=3), lambda: engine)
    engine.restore_base()
    with pytest.raises(InputError, match="task translation: its metric bleu is no mean over items"):
        fetched(evaluator, Order((2, 0, 1), in_flight=2, looks=(1,)))
    assert len(fetched(evaluator, Order((2, 0, 1), in_flight=2))) == 3


def test_an_error_in_grading_leaves_a_free_engine(
    evaluator: Evaluator, engine: VLLMEngine, whole: list[ItemRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise InputError("task capital_text: mend it")

    with monkeypatch.context() as patch:
        patch.setattr("mergebench_ray.evaluation.look_grader.grade", fail)
        with pytest.raises(InputError, match="mend it"):
            fetched(evaluator, ORDER)
    assert not engine._llm.llm_engine.has_unfinished_requests()
    assert fetched(evaluator, ORDER) == whole


def test_orders_are_dealt_out_in_turn() -> None:
    order = Order(tuple(range(100, 111)), in_flight=1, looks=(3, 6, 50), start=2)
    assert order.counts == (3, 6, 11)
    looks = [order.by_look(Share(index, 3)) for index in range(3)]
    assert looks == [[[], [103], [106, 109]], [[], [104], [107, 110]], [[102], [105], [108]]]
    assert order.by_look(Share()) == [[102], [103, 104, 105], [106, 107, 108, 109, 110]]
    assert order.dealt(Share(1, 3)) == (101, 104, 107, 110)


def test_looks_alone_are_the_first_ones_whatever_a_share_has_of_later_ones() -> None:
    order = Order(tuple(range(100, 109)), in_flight=1, alone=4, looks=(4, 8))
    assert order.looks_alone == 1
    assert replace(order, alone=0).looks_alone == replace(order, start=4).looks_alone == 0
    assert replace(order, looks=()).looks_alone == 0
