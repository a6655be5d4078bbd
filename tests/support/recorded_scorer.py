"""A scorer with bank and engines of this process, which note what they are told and are lost when asked to be."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray
from ray.exceptions import RayActorError

from actors_here import ActorHere
from made_up_search import item
from mergebench_ray.config import Recipe
from mergebench_ray.evaluation.graded import GradedItems, GradedShare, Spent
from mergebench_ray.evaluation.order import Order
from mergebench_ray.evaluation.ordered_scoring import Answered, Look
from mergebench_ray.scores import DomainScore, Scores
from mergebench_ray.search import scorer as module
from mergebench_ray.search.losses import Losses
from mergebench_ray.search.scorer import CandidateScorer, Step
from mergebench_ray.search.supervisor import Supervisor


class RecordingBank:
    """Makes recipes as a bank does, and notes what it merges; one merge at a time, or the test fails."""

    def __init__(self) -> None:
        self.merged: list[str] = []
        self._busy = threading.Lock()

    def recipe(self, method: str, parameters: dict[str, Any]) -> Recipe:
        models = {"base": "b", "base_digest": "c", "specialists": {"math": "s"}, "specialist_digests": {"math": "d"}}
        return Recipe.model_validate({"method": method, "parameters": parameters, **models})

    def merge(self, recipe: Recipe) -> Any:
        assert self._busy.acquire(blocking=False), "two merges at once in one buffer"
        self.merged.append(recipe.digest)
        self._busy.release()
        return SimpleNamespace(manifest=recipe.digest, seconds=0.1, places=())


class RecordingEvaluator:
    """Notes what is loaded into it."""

    def __init__(self, node: str = "here") -> None:
        self.loaded: list[Any] = []
        self.node = node
        self.together: Any = None

    def is_there(self) -> str:
        return self.node

    def start(self) -> None:
        pass

    def spent(self) -> None:
        pass

    def load(self, manifest: str, places: Any, together: Any) -> None:
        self.loaded.append(manifest)
        self.together = together

    def load_checkpoint(self, checkpoint: str, base: str) -> None:
        self.loaded.append((checkpoint, base))


class Parts:
    """A scorer with its bank and engines; `score` is what any model scores in math."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        engines: int = 1,
        per_candidate: int = 1,
        one_by_one: bool = False,
        nodes: Sequence[str] = (),
    ) -> None:
        monkeypatch.setattr(ray, "get", got)
        monkeypatch.setattr(ray, "kill", lambda _actor: None)
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
        monkeypatch.setattr(module, "grade_together", self._answer)
        self.score = 0.4
        self.asked: list[tuple[int, str]] = []
        self.fails: list[BaseException | None] = []
        self.said: list[str] = []
        self.wait: threading.Barrier | None = None
        self.bank = RecordingBank()
        self.handles: list[ActorHere] = []
        self.nodes = list(nodes)
        self.supervisor = Supervisor(
            self._start,
            lambda actor: actor.actor,
            engines,
            per_candidate,
            self.said.append,
            log="see engine-{index}.log",
            remedy="start again",
        )
        self.supervisor.begin(one_by_one=one_by_one)
        self.supervisor.wait()
        self.losses = Losses(folder / "losses.jsonl", self.said.append)
        bank: Any = self.bank
        self.scorer = CandidateScorer(bank, self.supervisor, self.losses)

    @property
    def evaluators(self) -> list[RecordingEvaluator]:
        return [handle.actor for handle in self.supervisor.actors]

    def _start(self, _index: int) -> Any:
        self.handles.append(ActorHere(RecordingEvaluator(self.nodes.pop(0) if self.nodes else "here")))
        return self.handles[-1]

    def _answer(
        self, evaluators: Sequence[ActorHere], split: str, domains: list[str] | None, known: GradedItems
    ) -> tuple[Scores, GradedItems]:
        if self.wait is not None:
            self.wait.wait(timeout=60)
        self.asked.append((len(evaluators), split))
        if self.fails and (error := self.fails.pop(0)) is not None:
            raise error
        scores = Scores(split, {"math": DomainScore(self.score, 0.01, 64)}, [], "v", 1.0, 1.0, 10, 0)
        return scores, {place: item(place, "math", 1.0) for place in range(4)} | dict(known)

    def begin(self, known: Sequence[str] = (), order: Order | None = None) -> None:
        self.scorer.begin_search(known, order)

    def look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Begin a search that looks at candidates in `ORDER`."""
        monkeypatch.setattr(module, "OrderedScoring", LooksHere)
        monkeypatch.setattr(LooksHere, "made", [])
        self.begin(order=ORDER)

    def step(self, number: int, density: float) -> Step:
        self.scorer.begin(number, self.bank.recipe("ties", {"density": density}))
        step = self.scorer.take(number)
        assert step is not None
        return step

    def loses(self, index: int = 0, times: int = 1, *, node: bool = False, preempted: bool = False) -> None:
        """Let the engine be lost under whatever is asked next, and those that take its place; or its whole node."""
        said = "The actor died because its node has died." if node or preempted else RayActorError.BASE_ERROR_MSG
        for _ in range(times):
            self.fails.append(EngineDiedError(self, index, said, preempted))


class EngineDiedError(RayActorError):
    """Of the engine that is there when it is raised."""

    def __init__(
        self, parts: Parts, index: int, said: str = RayActorError.BASE_ERROR_MSG, preempted: bool = False
    ) -> None:
        super().__init__(error_msg=said, preempted=preempted)
        self._parts, self._index = parts, index

    @property
    def actor_id(self) -> str:
        return self._parts.supervisor.actors[self._index].id

    @actor_id.setter
    def actor_id(self, _value: Any) -> None:
        pass


def got(values: Any) -> Any:
    """What calls of objects of this process came back with; an error where one of them is."""
    for one in values if isinstance(values, list) else [values]:
        if isinstance(one, BaseException):
            raise one
    return values


class LooksHere:
    """Stands for an `OrderedScoring`: the next two items at each look."""

    made: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, evaluators: Any, split: str, order: Order, before: Answered | None) -> None:
        self.made.append((order.start, order.end))
        assert order.start == (0 if before is None else before.count)
        self._order, self._count = order, order.start
        self._items = {} if before is None else dict(before.graded.items)
        self._seconds = 0.0 if before is None else before.graded.spent.seconds

    def next_look(self) -> Look:
        new = {place: item(place, "math", 1.0) for place in self._order.places[self._count : self._count + 2]}
        self._count += len(new)
        self._items |= new
        return Look(self._count, new)

    def given(self, seconds: float) -> Answered:
        return Answered(GradedShare(self._items, "v", Spent(seconds=seconds)), self._count)

    def finish(self) -> tuple[Scores, Answered]:
        graded = GradedShare(self._items, "v", Spent(seconds=self._seconds + 1.0))
        domains = {"math": DomainScore(1.0, 0.0, self._count)}
        scores = Scores("validation", domains, [], "v", graded.spent.seconds, 0.0, 0, 0)
        return scores, Answered(graded, self._count)


ORDER = Order((3, 1, 0, 2, 4), in_flight=2, looks=(2, 4))
