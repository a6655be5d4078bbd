"""The engines of a sweep: who may use which, and another one in the place of one that is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray

from mergebench_ray.errors import StoppedError, one_line
from mergebench_ray.evaluation.evaluator import Evaluator, EvaluatorStats
from mergebench_ray.ray_actors import Actor
from mergebench_ray.ray_errors import first_cause, lost_actor, node_was_lost, was_preempted, why_lost
from mergebench_ray.search.losses import NODE_STRIKE, Loss, LostError

P = ParamSpec("P")
R = TypeVar("R")
Engines = tuple[int, ...]
"""Indices of the engines that share a candidate's items."""

_STARTS = 3
"""So many engines in a row may be lost while they start; after that the search goes on without."""
_PLACE_SECONDS = 90.0
"""After which an engine that has no process yet is taken to wait for a place."""
_AGAIN_SECONDS = 0.5


class Supervisor:
    """Starts engines, lends them in groups, and brings back those that are lost. May be used by several threads.

    Args:
        start: begins to start the engine of an index.
        prepare: brings an engine to where it can be lent, and waits for that.
        count: engines.
        per_candidate: engines of a group; divides their number.
        say: called with a line about what was lost and what that took.
        log: where to look why an engine does not start, with {index} in the place of the engine's; empty where there
            is nothing to look at.
        remedy: what to do where none starts.
    """

    def __init__(
        self,
        start: Callable[[int], Actor[Evaluator]],
        prepare: Callable[[Actor[Evaluator]], EvaluatorStats],
        count: int,
        per_candidate: int,
        say: Callable[[str], None],
        *,
        log: str,
        remedy: str,
    ) -> None:
        self._start, self._prepare, self._say = start, prepare, say
        self._log, self._remedy = log, remedy
        self._groups = [
            tuple(range(group * per_candidate, (group + 1) * per_candidate)) for group in range(count // per_candidate)
        ]
        self._free = list(self._groups)
        self._changed = threading.Condition()
        self._starting = threading.Lock()
        self._one_by_one = False
        self._turn: AbstractContextManager[Any] = nullcontext()
        self._index_of: dict[str, int] = {}
        self._there: dict[str, ray.ObjectRef[str]] = {}
        self._nodes: dict[int, str] = {}
        self._up: set[int] = set()
        self._homeless: set[int] = set()
        self._given_up: set[int] = set()
        self._lent_at: dict[int, float] = {}
        self._failure: BaseException | None = None
        self._closed = False
        self._count, self._actors = count, list[Actor[Evaluator]]()
        self.stats: dict[int, EvaluatorStats] = {}

    @property
    def actors(self) -> list[Actor[Evaluator]]:
        """The engines of now, in their order, whether they are up or not."""
        return list(self._actors)

    @property
    def up(self) -> list[Actor[Evaluator]]:
        """Those of them that answer: none that starts, or has no place."""
        with self._changed:
            return [self._actors[index] for index in sorted(self._up)]

    # Start and end

    def begin(self, *, one_by_one: bool = False) -> None:
        """Begin to start all engines, or start each before the next begins; those that take their place likewise."""
        if one_by_one:
            self._one_by_one, self._turn = True, threading.Lock()
        for index in range(self._count):
            self._actors.append(self._begin(index))
            if one_by_one:
                with suppress(ray.exceptions.RayActorError):  # `wait` starts another one
                    ray.get(self._actors[-1].call(Evaluator.start))

    def wait(self) -> None:
        """Prepare all engines, side by side, and wait until they are up, but for those that are lost at every start.

        Raises:
            RayError: what one of them failed with.
            StoppedError: all were lost three times in a row.
        """
        for index, actor in enumerate(self._actors):
            self._in_background(self._bring_up, index, actor, None)
        with self._changed:
            self._changed.wait_for(lambda: self._failure or len(self._up | self._given_up) == len(self._actors))
            self._check()

    def close(self) -> None:
        """End all engines, and whatever waits for one."""
        with self._starting, self._changed:
            self._closed = True
            self._changed.notify_all()
        for actor in self._actors:
            actor.kill()

    # Lending

    def acquire(self, *, everything: bool = False) -> Engines:
        """Wait for a free group of engines, or for all engines but those that no node has a place for.

        Raises:
            StoppedError: no engine comes back.
        """
        with self._changed:
            while True:
                self._check()
                ready = [group for group in self._free if self._up.issuperset(group)]
                there = [group for group in self._groups if not self._homeless.intersection(group)]
                if ready and (not everything or len(ready) == len(there)):
                    taken = ready if everything else ready[:1]
                    self._free = [group for group in self._free if group not in taken]
                    engines = tuple(sorted(index for group in taken for index in group))
                    self._lent_at |= dict.fromkeys(engines, time.monotonic())
                    return engines
                self._changed.wait()

    def release(self, engines: Engines) -> None:
        """Give engines back."""
        with self._changed:
            self._free += [group for group in self._groups if not set(group).isdisjoint(engines)]
            for index in engines:
                self._lent_at.pop(index, None)
            self._changed.notify_all()

    @contextmanager
    def lent(self, *, everything: bool = False) -> Iterator[Engines]:
        """Engines for the length of a block.

        Raises:
            LostError: one of them was lost in the block, or what it waited for.
        """
        engines = self.acquire(everything=everything)
        try:
            with self.watched(engines):
                yield engines
        finally:
            self.release(engines)

    @contextmanager
    def watched(self, engines: Engines) -> Iterator[None]:
        """A block in which engines work: where one is lost, another one is started.

        Raises:
            LostError: one of them was lost, or what it waited for.
        """
        try:
            yield
        except Exception as error:
            lost = self._lost(engines, error)
            if lost is None:
                raise
            raise lost from error

    def of(self, engines: Engines) -> list[Actor[Evaluator]]:
        """The actors of engines that are lent."""
        return [self._actors[index] for index in engines]

    def nodes(self, actors: Sequence[Actor[Evaluator]]) -> list[str]:
        """Ray's ids of the nodes of engines."""
        return [self._nodes[self._index_of[actor.id]] for actor in actors]

    def ask(
        self,
        method: Callable[Concatenate[Evaluator, P], R],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> R:
        """Call a method whose answer is the same from each engine, of one that is not at work.

        Where all are at work, it is one of those: whoever waits here may be who has to halt a candidate.
        """
        while True:
            index, group = self._idle()
            try:
                with self.watched((index,)):
                    return ray.get(self._actors[index].call(method, *arguments, **options))
            except LostError:
                time.sleep(_AGAIN_SECONDS)
            finally:
                if group is not None:
                    self.release(group)

    def _idle(self) -> tuple[int, Engines | None]:
        with self._changed:
            while True:
                self._check()
                for group in self._free:
                    if self._up.issuperset(group):
                        self._free.remove(group)
                        return group[0], group
                if self._up:
                    return min(self._up), None
                self._changed.wait()

    # Losses

    def _lost(self, engines: Engines, error: BaseException) -> LostError | None:
        """What was lost where an error says so; engines come back in the background, all of them as if new."""
        actor = lost_actor(error)
        if actor is None or self._closed:
            return None
        if not actor:  # what a shard on another node answered
            return LostError(why_lost(error))
        if actor not in self._index_of:
            return None
        reason = why_lost(error)
        with self._changed:
            for index in engines:
                if index in self._up:
                    self._up.discard(index)
                    now = time.monotonic()
                    loss = Loss(reason, now - self._lent_at.get(index, now))
                    if self._actors[index].id == actor:
                        self._in_background(self._replace, index, loss)
                    else:
                        self._in_background(self._drain, index, self._actors[index], loss)
        return LostError(reason, 0.0 if was_preempted(error) else NODE_STRIKE if node_was_lost(error) else 1.0)

    # Nodes that are to be taken away

    def leave(self, node: str) -> Engines:
        """Lend the engines of a node no more; those that are lent go on until they are given back.

        Returns:
            which they are, for `move`; until then nobody waits for them.
        """
        with self._changed:
            leaving = tuple(index for index in sorted(self._up) if self._nodes.get(index) == node)
            self._up.difference_update(leaving)
            self._homeless.update(leaving)
            self._changed.notify_all()
        return leaving

    def move(self, leaving: Engines) -> None:
        """Have others take the place of engines that are lent no more, each once it is given back.

        Returns when all of them have ended, and those others begun; or when everything has.
        """
        left, loss = set(leaving), Loss("its node is to be taken away", None)
        while left:
            with self._changed:
                while not (idle := left - self._lent_at.keys()) and not self._closed:
                    self._changed.wait()
                self._homeless -= idle
            for index in idle:
                self._in_background(self._bring_up, index, self._begin_again(index), loss)
            left -= idle
            if self._closed:
                return

    def _drain(self, index: int, actor: Actor[Evaluator], loss: Loss) -> None:
        """Wait until an engine has nothing more to do; it may be lost as well, with its node."""
        try:
            ray.get(actor.call(Evaluator.spent))
        except Exception as error:
            self._replace(index, replace(loss, reason=why_lost(error)))
            return
        self._is_up(index)

    def _replace(self, index: int, loss: Loss) -> None:
        self._bring_up(index, self._begin_again(index), loss)

    def _begin(self, index: int) -> Actor[Evaluator]:
        actor = self._start(index)
        self._index_of[actor.id] = index
        self._there[actor.id] = actor.call(Evaluator.is_there)
        if not self._one_by_one:
            actor.call(Evaluator.start)
        return actor

    def _begin_again(self, index: int) -> Actor[Evaluator]:
        with self._starting:
            self._check()  # once Ray has ended, it would start a session of its own for one that begins
            self._actors[index].kill()
            actor = self._begin(index)
            with self._changed:
                self._actors[index] = actor
        return actor

    def _bring_up(self, index: int, actor: Actor[Evaluator], loss: Loss | None) -> None:
        """Wait until an engine is up, one after the other where they are lost while they start."""
        began, tried = time.monotonic(), 1
        while not self._closed:
            try:
                self._await_place(index, actor)
                with self._turn:
                    self.stats[index] = self._prepare(actor)
            except Exception as error:
                is_lost = lost_actor(error) == actor.id
                # What is wrong with model or settings shows at the first start; one that takes another's place may
                # fail since its device is not in order yet.
                if not is_lost and loss is None:
                    self._fail(error)
                    return
                if tried == _STARTS:
                    self._give_up(index, why_lost(error) if is_lost else one_line(first_cause(error)))
                    return
                tried += 1
                actor = self._begin_again(index)
                continue
            self._is_up(index)
            if loss is not None:
                self._say(loss.made_good(index, time.monotonic() - began))
            return

    def _await_place(self, index: int, actor: Actor[Evaluator]) -> None:
        """Say where an engine has to wait for a node with room, which may be for long."""
        begun = self._there.pop(actor.id)
        if ray.wait([begun], timeout=_PLACE_SECONDS)[0]:
            self._nodes[index] = ray.get(begun)
            return
        self._say(f"engine {index} waits for a node with a place for it; meanwhile those that are up go on")
        with self._changed:
            self._homeless.add(index)
            self._changed.notify_all()
        try:
            self._nodes[index] = ray.get(begun)
        finally:
            with self._changed:
                self._homeless.discard(index)

    def _is_up(self, index: int) -> None:
        with self._changed:
            self._up.add(index)
            self._changed.notify_all()

    def _give_up(self, index: int, reason: str) -> None:
        """Go on with the other engines; where there are none, it is over."""
        said, log = f"engine {index} failed to start {_STARTS} times in a row ({reason})", self._log.format(index=index)
        with self._changed:
            self._given_up.add(index)
            # Whoever shared a candidate's items with it goes on without.
            self._groups, self._free = (
                [left for group in groups if (left := tuple(one for one in group if one not in self._given_up))]
                for groups in (self._groups, self._free)
            )
            if not self._groups:
                last = f"{said}, and no other is left: {', '.join(filter(None, (log, self._remedy)))}"
                self._failure = self._failure or StoppedError(last)
            self._changed.notify_all()
        if self._failure is None:
            self._say("; ".join(filter(None, (f"{said}: the others go on without it", log))))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoppedError("the engines have ended")

    def _in_background(self, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # else whoever waits for the engine would wait for ever
                self._fail(error)

        threading.Thread(target=run, daemon=True).start()
