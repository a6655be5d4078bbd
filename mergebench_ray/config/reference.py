"""References to models: where a checkpoint comes from, as one compact string."""

from __future__ import annotations

from dataclasses import dataclass

from mergebench_ray.errors import InputError

_PATH_STARTS = (".", "/", "~", "package:")


@dataclass(frozen=True, order=True)
class ModelRef:
    """Names a checkpoint; parses and prints as one string.

    ========================================  ==================================================================
    form                                      meaning
    ========================================  ==================================================================
    ``owner/name`` or ``owner/name@revision``   a model on the hub (from the local cache when offline)
    ``./folder`` or ``/folder``                 a folder with single or sharded safetensors
    ``file.gguf``                               a GGUF file, dequantised once into the cache
    ``package:name/path``                       a folder or file inside an installed Python package
    ``BASE+ADAPTER``                            a PEFT LoRA adapter (any form above) applied to a base
    ========================================  ==================================================================

    A name without a leading ``./`` is taken as a folder where such a folder exists, otherwise as a hub id.

    Attributes:
        source: path, ``package:`` path or hub id.
        revision: branch, tag or commit of a hub id; None for its default.
        adapter: the adapter's own reference, or None.
    """

    source: str
    revision: str | None = None
    adapter: ModelRef | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a reference.

        Raises:
            InputError: if a part is empty, or an adapter itself has an adapter.
        """
        parts = text.strip().split("+")
        if len(parts) > 2 or not all(parts):
            raise InputError(f"model reference {text!r}: write MODEL or MODEL+ADAPTER, each part not empty")
        model = cls._parse_one(parts[0], text)
        if len(parts) == 1:
            return model
        return cls(model.source, model.revision, cls._parse_one(parts[1], text))

    @classmethod
    def _parse_one(cls, part: str, whole: str) -> ModelRef:
        if part.startswith(_PATH_STARTS) or "@" not in part:
            return cls(part)
        source, _, revision = part.rpartition("@")
        if not source or not revision:
            raise InputError(f"model reference {whole!r}: write owner/name@revision, each part not empty")
        return cls(source, revision)

    @property
    def model(self) -> ModelRef:
        """The reference without its adapter."""
        return ModelRef(self.source, self.revision)

    def __str__(self) -> str:
        text = self.source if self.revision is None else f"{self.source}@{self.revision}"
        return text if self.adapter is None else f"{text}+{self.adapter}"
