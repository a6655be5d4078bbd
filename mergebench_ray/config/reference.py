"""References to models: where a checkpoint comes from, as one compact string."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mergebench_ray.config.storage_url import hide_passwords_in
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.object_storage.address import SCHEMES, Address, scheme_of

HUB_SCHEME = "hf://"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_PATH_STARTS = (".", "/", "~", "package:")
_MAX_PLUS_SIGNS = 16


@dataclass(frozen=True, order=True)
class ModelRef:
    """Names a checkpoint; parses and prints as one string.

    | form | meaning |
    | --- | --- |
    | `owner/name` or `owner/name@revision`, also with `hf://` | a model on the hub (from its cache when offline) |
    | `s3://bucket/folder`, `gs://bucket/folder` | a folder of object storage, or a `.gguf` file in one |
    | `./folder` or `/folder` | a folder with single or sharded safetensors |
    | `file.gguf` | a GGUF file, dequantised once into the cache |
    | `package:name/path` | a folder or file inside an installed Python package |
    | `BASE+ADAPTER` | a PEFT LoRA adapter (any form above) applied to a base |

    A name without a leading `./` is taken as a folder where such a folder exists, otherwise as a hub id. A path that
    exists may hold `+` and `@`, alone and on either side of the `+` that joins a model and its adapter; a place in
    object storage may hold `@`.

    Attributes:
        source: path, `package:` path, address in object storage, or hub id.
        revision: branch, tag or commit of a hub id; None for its default.
        adapter: the adapter's own reference, or None.
    """

    source: str
    revision: str | None = None
    adapter: ModelRef | None = None

    @classmethod
    def parse(cls, text: Path | str) -> ModelRef:
        """Read a reference; a `Path` is a folder or a GGUF file.

        Raises:
            InputError: if a part is empty, an adapter itself has an adapter, or a part is of no known kind.
        """
        text = reference_text(text)
        whole = text.strip()
        if exists_here(whole):
            return cls(whole)
        model, adapter = _split(whole)
        if not model or adapter == "":
            raise _wrong(text, "write MODEL or MODEL+ADAPTER, each part not empty")
        parsed = cls._parse_one(model, text)
        return parsed if adapter is None else cls(parsed.source, parsed.revision, cls._parse_one(adapter, text))

    @classmethod
    def _parse_one(cls, part: str, whole: str) -> ModelRef:
        scheme = scheme_of(part)
        if scheme in SCHEMES:
            return cls(str(Address.parse(part)))
        if scheme is not None and not part.startswith(HUB_SCHEME) and not exists_here(part):
            raise _wrong(whole, f"nothing is known of {scheme}://; {nearest(scheme, (*SCHEMES, 'hf'))}")
        if part.startswith(HUB_SCHEME) and not HUB_ID.fullmatch(part.removeprefix(HUB_SCHEME).partition("@")[0]):
            raise _wrong(whole, "write hf://owner/name or hf://owner/name@revision")
        if part.startswith(_PATH_STARTS) or "@" not in part or exists_here(part):
            return cls(part)
        source, _, revision = part.rpartition("@")
        if not source or not revision:
            raise _wrong(whole, "write owner/name@revision, each part not empty")
        return cls(source, revision)

    @property
    def hub_id(self) -> str:
        """The source as the hub calls it, where it is a model there."""
        return self.source.removeprefix(HUB_SCHEME)

    @property
    def model(self) -> ModelRef:
        """The reference without its adapter."""
        return ModelRef(self.source, self.revision)

    def __str__(self) -> str:
        text = self.source if self.revision is None else f"{self.source}@{self.revision}"
        return text if self.adapter is None else f"{text}+{self.adapter}"


def reference_text(reference: Path | str) -> str:
    """A reference as text; that of a `Path` is not taken for a hub id where nothing is there."""
    text = str(reference)
    if isinstance(reference, str) or text.startswith(_PATH_STARTS):
        return text
    return f"./{text}"


def exists_here(path: str) -> bool:
    """Whether a text is the path of something on this machine; False for what cannot be a path."""
    try:
        return bool(path) and Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _split(text: str) -> tuple[str, str | None]:
    """Model and adapter: cut where most of the two exist; None for the adapter where there is no `+`."""
    cuts = [position for position, letter in enumerate(text) if letter == "+"]
    if not cuts:
        return text, None
    if len(cuts) > _MAX_PLUS_SIGNS:
        raise _wrong(text, f"more than {_MAX_PLUS_SIGNS} '+'; write MODEL+ADAPTER")
    pairs = [(text[:cut], text[cut + 1 :]) for cut in cuts]
    found = {pair: sum(map(exists_here, pair)) for pair in pairs}
    best = max(pairs, key=lambda pair: (found[pair], len(pair[0])))
    if len(pairs) > 1 and not found[best]:
        raise _wrong(text, "write MODEL or MODEL+ADAPTER; no such path with '+' in it exists")
    return best


def _wrong(text: str, problem: str) -> InputError:
    """What is wrong with a reference, in which nothing is shown that may be a password."""
    return InputError(f"model reference {hide_passwords_in(text)!r}: {problem}")
