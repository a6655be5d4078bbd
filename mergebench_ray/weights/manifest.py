"""Where merged weights lie in memory: what a control message between bank and engine carries instead of bytes."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True)
class Piece:
    """A run of elements inside a memory file of this node.

    Attributes:
        path: memory file that any process of the node can map.
        offset: first element, counted in elements of the tensor's dtype.
        count: number of elements.
    """

    path: str
    offset: int
    count: int


@dataclass(frozen=True)
class WeightTensor:
    """A named tensor made of pieces, in order, together its flattened content.

    Attributes:
        name: name in the checkpoint.
        shape: shape of the whole tensor.
        pieces: where its elements lie; more than one where shards split it.
        fingerprint: equal fingerprints mean equal content, so an engine that holds it need not load it again.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    fingerprint: str

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class WeightBucket:
    """Tensors that go into an engine together.

    Attributes:
        tensors: their pieces lie in memory of this node, and may be read until the next bucket is asked for.
        is_last: whether no other bucket comes after it.
    """

    tensors: tuple[WeightTensor, ...]
    is_last: bool = True


@dataclass(frozen=True)
class WeightManifest:
    """All merged tensors of a candidate.

    Attributes:
        version: recipe digest; becomes the engine's weight version.
        dtype: name of the torch dtype of every tensor.
        tensors: the merged tensors.
    """

    version: str
    dtype: str
    tensors: tuple[WeightTensor, ...]

    def buckets(self, names: Collection[str]) -> Generator[WeightBucket, None, None]:
        """The tensors of these names, in the manifest's order: all at once, where they lie in memory of this node."""
        wanted = set(names)
        yield WeightBucket(tuple(tensor for tensor in self.tensors if tensor.name in wanted))


@dataclass(frozen=True)
class JoinedWeights(WeightManifest):
    """A manifest whose tensors are in several others, which are read one after the other.

    Attributes:
        parts: manifests that have each tensor once between them.
    """

    parts: tuple[WeightManifest, ...]

    def buckets(self, names: Collection[str]) -> Generator[WeightBucket, None, None]:
        """The tensors of these names, part by part."""
        wanted = set(names)
        parts = [part for part in self.parts if any(tensor.name in wanted for tensor in part.tensors)]
        for part in parts:
            with closing(part.buckets(wanted)) as buckets:
                for bucket in buckets:
                    yield replace(bucket, is_last=bucket.is_last and part is parts[-1])
        if not parts:
            yield WeightBucket(())
