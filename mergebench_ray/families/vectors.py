"""Which modules write and read the vectors inside a network."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergebench_ray.config.fields import Strict


class LatentVector(Strict):
    """A low-rank vector of latent attention.

    Attributes:
        writer: makes it.
        norm: normalises it.
        reader: reads it.
    """

    writer: str
    norm: str
    reader: str


class VectorWords(Strict):
    """Last names of modules, by what they do with the residual stream and with the vectors inside attention.

    Attributes:
        readers: read the residual stream, after a norm.
        attention_writers: add an attention's output to the residual stream.
        writers: add to the residual stream elsewhere.
        values: makes an attention's values.
        norms: pattern of norms of the residual stream.
        pre_norms: norms whose output only the readers of a layer see.
        query_key_norms: norms of queries and of keys, each with the other.
        latent: low-rank vectors of latent attention.
        inside: what neither reads nor writes any of these vectors.
    """

    readers: frozenset[str]
    attention_writers: frozenset[str]
    writers: frozenset[str]
    values: str
    norms: re.Pattern[str]
    pre_norms: frozenset[str]
    query_key_norms: Mapping[str, str]
    latent: tuple[LatentVector, ...]
    inside: frozenset[str]

    def latent_of(self, leaf: str) -> LatentVector | None:
        """The low-rank vector that a module makes, normalises or reads."""
        return next((one for one in self.latent if leaf in (one.writer, one.norm, one.reader)), None)

    def is_stream_norm(self, leaf: str) -> bool:
        """Whether a module is a norm of the residual stream."""
        others = {*self.query_key_norms, *self.inside, *(one.norm for one in self.latent)}
        return leaf not in others and self.norms.fullmatch(leaf) is not None
