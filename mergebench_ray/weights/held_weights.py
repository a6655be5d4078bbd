"""The books on what an engine holds, so that only tensors that change are sent."""

from __future__ import annotations

from mergebench_ray.families import ModelFamily
from mergebench_ray.weights.manifest import WeightManifest


class HeldWeights:
    """Fingerprints of the tensors that an engine holds; a tensor without one is the base's.

    Args:
        family: says which tensors are loaded together.

    Attributes:
        undefined: True from the moment a replacement begins until it is complete: the weights are of no candidate.
    """

    def __init__(self, family: ModelFamily) -> None:
        self._family = family
        self.undefined = False
        self._fingerprints: dict[str, str] = {}

    def changed(self, manifest: WeightManifest) -> list[str]:
        """Tensors to send for this candidate, widened to whole layers, in the manifest's order."""
        if self.undefined:
            return [tensor.name for tensor in manifest.tensors]
        groups = {
            self._family.load_group(tensor.name)
            for tensor in manifest.tensors
            if self._fingerprints.get(tensor.name) != tensor.fingerprint
        }
        return [tensor.name for tensor in manifest.tensors if self._family.load_group(tensor.name) in groups]

    def not_in(self, manifest: WeightManifest) -> bool:
        """Whether a tensor differs from the base that this manifest would leave as it is."""
        return bool(self._fingerprints.keys() - {tensor.name for tensor in manifest.tensors})

    def differ_from_base(self) -> bool:
        """Whether any tensor differs from the base's."""
        return self.undefined or bool(self._fingerprints)

    def begin(self) -> None:
        """A replacement begins."""
        self.undefined = True

    def complete(self, manifest: WeightManifest | None) -> None:
        """The replacement is complete: the engine holds this candidate, or the base (None)."""
        self._fingerprints = {} if manifest is None else {t.name: t.fingerprint for t in manifest.tensors}
        self.undefined = False
