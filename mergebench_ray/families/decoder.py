"""How transformers builds a family's decoder: what runs it one layer at a time must know."""

from __future__ import annotations

from typing import Any, Literal

from mergebench_ray.config.fields import Strict


class DecoderLayout(Strict):
    """The decoder in transformers' own model: embeddings, a list of layers, a last norm.

    Attributes:
        layers: attribute that is the list of layers.
        norm: attribute that is the last norm.
        eager_attention: settings which, where they are set, only the plain implementation of attention follows.
    """

    layers: str
    norm: str
    eager_attention: tuple[str, ...]

    def attention(self, config: Any) -> Literal["eager", "sdpa"]:
        """The implementation of attention that computes what a configuration of transformers says."""
        return "eager" if any(getattr(config, key, None) for key in self.eager_attention) else "sdpa"
