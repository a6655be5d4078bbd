"""Ray actors with the types of their classes: what they are called with is checked as any other call is."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray import ObjectRef, ObjectRefGenerator
from ray.actor import ActorHandle
from ray.exceptions import TaskCancelledError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_PIECE_BYTES = 64 << 10
_inherited: dict[str, Mapping[str, str]] = {}
"""Address of a cluster -> environment that all of its processes have."""


@dataclass(frozen=True)
class ActorMethod(Generic[P, R]):
    """A method of an actor. Where it is unpickled, the actor's class is not imported.

    Attributes:
        handle: Ray's handle of the actor.
        name: the method's.
    """

    handle: ActorHandle[Any]
    name: str

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> ObjectRef[R]:
        """Begin a call; `ray.get` waits for its answer."""
        begun: ObjectRef[R] = getattr(self.handle, self.name).remote(*arguments, **options)
        return begun


class ActorStream(Generic[R]):
    """What a generator of an actor yields. For the process that began the call, and there for one thread at a time.

    Args:
        generator: Ray's.
    """

    def __init__(self, generator: ObjectRefGenerator) -> None:
        self._generator = generator

    def __iter__(self) -> ActorStream[R]:
        return self

    def __next__(self) -> R:
        try:
            value: R = ray.get(next(self._generator))
        except TaskCancelledError:
            raise StopIteration from None
        return value

    def cancel(self) -> None:
        """Have `call_is_cancelled` say so in the actor; from any thread. What is yielded already still comes."""
        ray.cancel(self._generator)


def call_is_cancelled() -> bool:
    """Whether whoever began the call of an actor that runs here has cancelled it; False outside of Ray's workers."""
    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return False
    return bool(ray.get_runtime_context().is_canceled())


@dataclass(frozen=True)
class Actor(Generic[T]):
    """An actor, by the class that it is made of; may be pickled and used anywhere.

    Attributes:
        handle: Ray's handle of it.
    """

    handle: ActorHandle[T]

    @property
    def id(self) -> str:
        """Ray's id of it: the same after a restart by Ray."""
        return str(self.handle._actor_id.hex())

    def method(self, method: Callable[Concatenate[T, P], R]) -> ActorMethod[P, R]:
        """A method of it, given as one of the class: ``actor.method(Evaluator.score)``."""
        return ActorMethod(self.handle, method.__name__)

    def call(self, method: Callable[Concatenate[T, P], R], *arguments: P.args, **options: P.kwargs) -> ObjectRef[R]:
        """Begin a call: ``ray.get(actor.call(Evaluator.score, split))``."""
        return self.method(method)(*arguments, **options)

    def stream(
        self, method: Callable[Concatenate[T, P], Iterator[R]], *arguments: P.args, **options: P.kwargs
    ) -> ActorStream[R]:
        """Begin a call of a generator: what it yields, as soon as it does."""
        return ActorStream(getattr(self.handle, method.__name__).remote(*arguments, **options))

    def kill(self) -> None:
        """End it at once."""
        ray.kill(self.handle)


def by_value(*arguments: Any) -> Iterator[bytes]:
    """What an actor is made of, for one that Ray may start again; `from_values` makes it again.

    What is larger than these pieces would lie in Ray's object store, and might be gone by then.
    """
    packed = zlib.compress(pickle.dumps(arguments), 1)
    return (packed[start : start + _PIECE_BYTES] for start in range(0, len(packed), _PIECE_BYTES))


def from_values(pieces: Iterable[bytes]) -> Any:
    """What `by_value` took apart."""
    return pickle.loads(zlib.decompress(b"".join(pieces)))


def actors_of(kind: Callable[P, T], **options: Any) -> Callable[P, Actor[T]]:
    """What starts actors of a plain class, with Ray's options: ``actors_of(Evaluator, num_gpus=1)(suite, ...)``."""
    made: Any = ray.remote(kind)

    def start(*arguments: P.args, **named: P.kwargs) -> Actor[T]:
        return Actor(made.options(**_without_inherited(options)).remote(*arguments, **named))

    return start


def all_inherit(environment: Mapping[str, str]) -> None:
    """Note that every process of the cluster at hand has this environment from its start."""
    _inherited[ray.get_runtime_context().gcs_address] = environment


def _without_inherited(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without an environment that the actor has anyway: for each that has its own, Ray is imported twice."""
    wanted = options.get("runtime_env", {})
    if not _inherited or wanted.keys() != {"env_vars"}:
        return dict(options)
    inherited = _inherited.get(ray.get_runtime_context().gcs_address, {})
    is_there = wanted["env_vars"].items() <= inherited.items()
    return {name: value for name, value in options.items() if name != "runtime_env" or not is_there}
