"""What travels between bank and engine: manifests, memory files, and the books on what an engine holds."""

from __future__ import annotations

from mergebench_ray.weights.manifest import Piece, WeightManifest, WeightTensor

__all__ = ["Piece", "WeightManifest", "WeightTensor"]
