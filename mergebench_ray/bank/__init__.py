"""Base and task vectors, resident in Ray actors, or read in windows where a merge is made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergebench_ray.lazy import lazy_names

if TYPE_CHECKING:
    from mergebench_ray.bank.bank import Bank, Merged
    from mergebench_ray.bank.calibrator import Calibrator
    from mergebench_ray.bank.layout import Layout
    from mergebench_ray.bank.rehearsal import compiled_ahead
    from mergebench_ray.bank.shard import NoLongerHeldError
    from mergebench_ray.bank.streamed import StreamedBank

__all__ = ["Bank", "Calibrator", "Layout", "Merged", "NoLongerHeldError", "StreamedBank", "compiled_ahead"]

# Lazily, since a merge that is made once does without Ray, which takes a second to import.
__getattr__ = lazy_names(
    __name__,
    {
        "Bank": "bank",
        "Calibrator": "calibrator",
        "Layout": "layout",
        "Merged": "bank",
        "NoLongerHeldError": "shard",
        "StreamedBank": "streamed",
        "compiled_ahead": "rehearsal",
    },
)
