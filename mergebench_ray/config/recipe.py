"""A recipe: everything that determines a merged model, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mergebench_ray.config.calibration import CalibrationRecord
from mergebench_ray.config.fields import Line, Plain, Strict
from mergebench_ray.config.merged_parts import DEFAULT_PARTS, MergedParts
from mergebench_ray.config.names import Name
from mergebench_ray.config.yaml_files import parse_model, read_yaml, to_yaml
from mergebench_ray.digests import canonical_digest
from mergebench_ray.errors import InputError

WeightType = Literal["bfloat16", "float16", "float32"]
MAX_TEMPLATE = 1_000_000


class Recipe(Strict):
    """Fully determines the merged weights, whatever the number of shards, nodes or threads.

    `parameters` holds every hyper-parameter of the method, defaults filled in and scalars expanded per specialist
    (`mergebench_ray.methods.complete_parameters` does both), so that equal merges have equal digests.
    """

    method: Line = Field(description="Name of the merging method.")
    method_source: Line | None = Field(
        default=None, description="SHA-256 of the method's code, where another package or a user's file brings it."
    )
    parameters: dict[Line, Plain] = Field(default_factory=dict, description="Hyper-parameters, all of them.")
    base: Line = Field(description="Reference of the base model.")
    specialists: dict[Name, Line] = Field(description="References of the specialists by name.")
    base_digest: Line = Field(description="SHA-256 of the base's content.")
    specialist_digests: dict[Name, Line] = Field(description="SHA-256 of each specialist's content.")
    dtype: WeightType = Field(default="bfloat16", description="Type of the merged weights.")
    merged: MergedParts = Field(default=DEFAULT_PARTS, description="Which parts are merged; the rest is the base's.")
    calibration: CalibrationRecord | None = Field(default=None, description="Data that the method was calibrated on.")
    tokenizer: Name | None = Field(
        default=None, description="Specialist whose tokenizer comes beside the weights; None for the base's."
    )
    chat_template: str | None = Field(
        default=None,
        max_length=MAX_TEMPLATE,
        description="Chat template beside the weights: its text, chatml, or auto for that of most models; None for the "
        "tokenizer's.",
    )

    @property
    def content(self) -> dict[str, Any]:
        """What determines the weights; references (mere locations) do not, nor what lies beside the weights."""
        content: dict[str, Any] = {
            "method": self.method,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "base": self.base_digest,
            "specialists": self.specialist_digests,
        }
        if self.merged != DEFAULT_PARTS:
            content["merged"] = self.merged.model_dump()
        if self.method_source is not None:
            content["method_source"] = self.method_source
        if self.calibration is not None:
            content["calibration"] = self.calibration.content
        return content

    @property
    def digest(self) -> str:
        """SHA-256 over canonical JSON of the content."""
        return canonical_digest({"recipe": 1, **self.content})

    @property
    def key_digests(self) -> dict[str, str]:
        """A short digest of each value of the content, so that a file can say which of them was changed."""
        leaves = _leaves(self.content).items()
        return {key: canonical_digest([key, value])[:12] for key, value in leaves}

    def difference(self, other: Recipe) -> str | None:
        """The first key whose value differs in another recipe, with both values; None where the weights are equal."""
        mine, its = _leaves(self.content), _leaves(other.content)
        for key in sorted(mine.keys() | its.keys()):
            if mine.get(key) != its.get(key):
                values = [repr(one[key]) if key in one else "missing" for one in (mine, its)]
                return f"{key}: {values[0]:.80} in one, {values[1]:.80} in the other"
        return None

    def to_yaml(self) -> str:
        """The recipe as YAML, as `mergebench-ray merge --recipe` reads it; holds its digest."""
        usual = {"merged"} if self.merged == DEFAULT_PARTS else None
        own = self.model_dump(mode="json", exclude_none=True, exclude=usual)
        return to_yaml({**own, _DIGEST: self.digest, _KEY_DIGESTS: self.key_digests})

    @classmethod
    def from_yaml(
        cls, path: Path | str, *, accept_changes: bool = False, note: Callable[[str], None] | None = None
    ) -> Recipe:
        """Read a recipe file.

        Args:
            path: the file.
            accept_changes: take a recipe that was changed after it was written.
            note: told in a line what was accepted, and where a file holds no digest to check it by.

        Raises:
            InputError: naming file, key and rule; naming the key that was changed.
        """
        data = read_yaml(Path(path))
        digest, key_digests = data.pop(_DIGEST, None), data.pop(_KEY_DIGESTS, None)
        recipe = parse_model(cls, data, str(path))
        if set(recipe.specialists) != set(recipe.specialist_digests):
            odd = sorted(set(recipe.specialists) ^ set(recipe.specialist_digests))
            raise InputError(f"{path}: {odd[0]!r} is only in one of 'specialists' and 'specialist_digests'; mend that")
        problem = recipe._changed(digest, key_digests)
        if problem is not None and digest is not None and not accept_changes:
            raise InputError(f"{path}: {problem}; undo that, or go on with --accept-changes")
        if problem is not None and note is not None:
            note(f"{path}: {problem}")
        return recipe

    def _changed(self, digest: Any, key_digests: Any) -> str | None:
        """What is not as a file's digests say."""
        if digest is None:
            return "holds no digest, so whether it was changed cannot be known"
        if digest == self.digest:
            return None
        mine, its = self.key_digests, key_digests if isinstance(key_digests, dict) else {}
        changed = sorted(key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key))
        if not changed or not its:
            return "was changed since it was written (another digest)"
        return f"{', '.join(changed):.300} changed since the recipe was written (another digest)"


_DIGEST, _KEY_DIGESTS = "digest", "key_digests"


def _leaves(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists count as values."""
    leaves: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
