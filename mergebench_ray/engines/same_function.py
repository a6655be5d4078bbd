"""Other weights that compute the same function, to the last bit: what an engine is tried with.

Where a vector inside a network is written and read by matrices alone, the signs of its entries are a matter of
convention: flip an entry's sign in all that writes it and in all that reads it, and every product, hence every sum,
stays what it was, in any floating-point type. So a model can be changed nearly everywhere, with an answer known
beforehand; a part that stays old meets vectors of another convention and answers something else altogether.

Signs are flipped in the residual stream, in what norms hand to the layers, in attention's values, in queries and keys
with norms of their own, and in the low ranks of latent attention. Besides, some tokens change places, in the
embeddings and in the head: a model that was not changed at all shows when it is asked in the new tokens.

Norms that subtract a mean allow only all signs of the residual stream at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.families.vectors import LatentVector

_FLIPPED = -torch.ones(1)

Signs = dict[int, Tensor]
"""Axis -> signs of its entries, or one sign for all of them."""


class _Place(NamedTuple):
    """What a tensor belongs to: a module with its last name apart, its weight or its bias."""

    parent: str
    leaf: str
    bias: bool

    @classmethod
    def of(cls, name: str) -> _Place:
        *parents, last = name.split(".")
        if last in ("weight", "bias") and parents:
            return cls(".".join(parents[:-1]), parents[-1], last == "bias")
        # The experts of a layer may be one tensor, `experts.down_proj` with `experts.down_proj_bias`.
        bias = last.endswith("_proj_bias")
        return cls(".".join(parents), last.removesuffix("_bias") if bias else last, bias)


class SameFunction:
    """The other weights of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        norms: class names of the norms by which the engine computes.
        tokens: tokens that change places, each for the next; none twice.

    Attributes:
        unknown: tensors whose place in the network is not known. If there are any, nothing is changed.
    """

    def __init__(self, checkpoint: Checkpoint, norms: Collection[str], tokens: Sequence[int]) -> None:
        self._family, self._words = checkpoint.family, checkpoint.family.vectors
        self._shapes = {name: tuple(info.shape) for name, info in checkpoint.tensors.items()}
        self._places = {name: _Place.of(name) for name in self._shapes if not self._family.is_in_other_stack(name)}
        self._modules = {(place.parent, place.leaf): name for name, place in self._places.items() if not place.bias}
        self._tokens = dict(zip(tokens, [*tokens[1:], *tokens[:1]], strict=True))
        self._norms = frozenset(norms)
        self._plain_norms = self._norms <= {"RMSNorm", "LayerNorm"}
        self._signs: dict[str, Signs | None] = self._all_signs()
        self.unknown = sorted(name for name, signs in self._signs.items() if signs is None)

    @property
    def unchanged(self) -> list[str]:
        """Tensors that stay as they are."""
        return [name for name in self._shapes if self.unknown or not (self._signs.get(name) or self._has_tokens(name))]

    def token(self, token: int) -> int:
        """What a token is called in the other weights."""
        return token if self.unknown else self._tokens.get(token, token)

    def change(self, name: str, values: Tensor) -> Tensor:
        """A tensor of the other weights.

        Args:
            name: the tensor.
            values: its values in the checkpoint, of any floating-point type.

        Returns:
            a new tensor of the same type and the tensor's whole shape.
        """
        changed = values.reshape(self._shapes[name]).clone()
        if self.unknown:
            return changed
        for axis, signs in (self._signs.get(name) or {}).items():
            beside = [1] * changed.dim()
            beside[axis] = -1
            changed *= signs.to(changed.dtype).view(beside)
        if self._has_tokens(name):
            changed[[*self._tokens.values()]] = changed[[*self._tokens.keys()]]
        return changed

    def _has_tokens(self, name: str) -> bool:
        return name in self._places and (self._family.is_token_embedding(name) or self._family.is_output_head(name))

    def _all_signs(self) -> dict[str, Signs | None]:
        embeddings = [name for name in self._places if self._family.is_token_embedding(name)]
        if not self._norms or len(embeddings) != 1 or len(self._shapes[embeddings[0]]) != 2:
            return dict.fromkeys(self._places)
        self._vocabulary, self._width = self._shapes[embeddings[0]]
        self._no_means = all("RMS" in norm for norm in self._norms)
        self._stream = _signs(self._width, "stream") if self._no_means else _FLIPPED.expand(self._width)
        self._normed = _signs(self._width, "normed") if self._plain_norms and self._pre_norms_only() else self._stream
        # A tied head reads what embeddings write.
        tied = not any(map(self._family.is_output_head, self._places))
        self._final = self._stream if tied else self._normed
        return {name: self._signs_of(name, place, self._shapes[name]) for name, place in self._places.items()}

    def _pre_norms_only(self) -> bool:
        """Whether layers read what their two first norms hand on, and the head what the only other norm does."""
        weights = [name for name, place in self._places.items() if self._is_stream_norm(name) and not place.bias]
        inner = {self._places[name].leaf for name in weights if self._family.is_numbered(name)}
        outer = [name for name in weights if not self._family.is_numbered(name)]
        return bool(inner) and inner <= self._words.pre_norms and len(outer) == 1

    def _is_stream_norm(self, name: str) -> bool:
        leaf = self._places[name].leaf
        inner_norm = leaf == "norm" and self._family.is_numbered(name)
        return not inner_norm and self._words.is_stream_norm(leaf)

    def _signs_of(self, name: str, place: _Place, shape: tuple[int, ...]) -> Signs | None:
        """Signs of a tensor's entries, none for those that stay; None if its place in the network is not known."""
        leaf, words = place.leaf, self._words
        if self._family.is_token_embedding(name) or leaf in self._family.position_embeddings:
            return {1: self._stream} if len(shape) == 2 and shape[1] == self._width else None
        if self._family.is_output_head(name):
            weight = {} if place.bias else {1: self._final}
            return weight if shape == (self._vocabulary, self._width)[: len(shape)] else None
        if self._is_stream_norm(name):
            return self._of_norm(name, place, shape)
        if leaf in words.readers:
            return self._of_reader(place, shape)
        if leaf in words.writers or leaf in words.attention_writers:
            return self._of_writer(place, shape)
        if leaf in words.query_key_norms:
            both = (place.parent, words.query_key_norms[leaf]) in self._modules
            return {0: _FLIPPED} if both and self._plain_norms else {}
        if (latent := words.latent_of(leaf)) is not None:
            return self._of_latent(place, latent, shape)
        return {} if leaf in words.inside or leaf == "norm" else None

    def _of_norm(self, name: str, place: _Place, shape: tuple[int, ...]) -> Signs | None:
        if shape != (self._width,):
            return None
        after = self._normed if self._family.is_numbered(name) else self._final
        if place.bias:
            return {0: after}
        return {} if after is self._stream else {0: self._stream * after}

    def _of_reader(self, place: _Place, shape: tuple[int, ...]) -> Signs | None:
        signs: Signs = {}
        rows = 0
        if not place.bias:
            axis = _axis_of(self._width, shape, -1, -2)
            if axis is None:
                return None
            signs[axis], rows = self._normed, -3 - axis
        if place.leaf == self._words.values and self._takes_values(place.parent):
            signs[rows] = _FLIPPED
        if (latent := self._words.latent_of(place.leaf)) and (rank := self._rank(place.parent, latent)):
            signs[rows] = torch.cat([_signs(rank, place.leaf), torch.ones(shape[0] - rank)])
        return signs

    def _of_writer(self, place: _Place, shape: tuple[int, ...]) -> Signs | None:
        axis = _axis_of(self._width, shape, *([-1] if place.bias else [-2, -1]))
        if axis is None:
            return None
        flipped = not place.bias and place.leaf == self._takes_values(place.parent)
        return {axis: -self._stream if flipped else self._stream}

    def _of_latent(self, place: _Place, latent: LatentVector, shape: tuple[int, ...]) -> Signs | None:
        """A norm of a low-rank vector, or what reads that."""
        is_norm = place.leaf == latent.norm
        rank = self._rank(place.parent, latent)
        if (place.parent, latent.writer) not in self._modules or not rank or (place.bias and is_norm):
            return None
        norm = _signs(rank, "norm") if self._plain_norms else torch.ones(rank)
        if is_norm:
            return {0: norm} if self._plain_norms else {}
        return {} if place.bias else {-1: _signs(rank, latent.writer) * norm}

    def _rank(self, parent: str, latent: LatentVector) -> int | None:
        """Length of a low-rank vector in an attention."""
        reader = self._modules.get((parent, latent.reader))
        return None if reader is None else self._shapes[reader][-1]

    def _takes_values(self, parent: str) -> str | None:
        """The matrix of an attention that reads its values, where both can be told."""
        # Two flips of all signs would leave that matrix as it is.
        if (parent, self._words.values) not in self._modules or not self._no_means:
            return None
        return next((leaf for leaf in sorted(self._words.attention_writers) if (parent, leaf) in self._modules), None)


def _axis_of(width: int, shape: tuple[int, ...], *preferred: int) -> int | None:
    """The first of the preferred axes that has this length; None if none has, or experts leave it open."""
    found = [axis for axis in preferred if len(shape) >= -axis and shape[axis] == width]
    return None if not found or (len(shape) > 2 and len(found) > 1) else found[0]


def _signs(count: int, of: str) -> Tensor:
    """Signs that are always the same for a vector, float32 [count]."""
    generator = torch.Generator().manual_seed(sum(of.encode()))
    return torch.randint(0, 2, (count,), generator=generator).float() * 2 - 1
