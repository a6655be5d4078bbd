"""Where the adapters of the built-in suite go, known before anything that trains them is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergebench_ray.config import Suite
from mergebench_ray.errors import InputError, nearest
from mergebench_ray.files import check_writable
from mergebench_ray.suites.smollm2_mini import NAME


def checked_adapters(out: Path, domains: Sequence[str] | None) -> dict[str, Path]:
    """The folder of each adapter that `train-specialists` is asked for; arguments as there.

    Raises:
        InputError: a folder in the way or that cannot be written, or an unknown domain.
    """
    check_writable(out)
    known = Suite.load(NAME).domains
    chosen = list(known) if domains is None else domains
    for domain in chosen:
        if domain not in known:
            raise InputError(f"suite {NAME} has no domain {domain!r}; {nearest(domain, known)}")
        folder = out / domain
        if folder.exists() and not (folder / "adapter_model.safetensors").is_file():
            raise InputError(f"{folder} exists and is no adapter: choose another --out or remove it")
    return {domain: out / domain for domain in chosen}
