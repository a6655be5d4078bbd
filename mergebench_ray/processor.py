"""What this machine's processor can do."""

from __future__ import annotations

import torch


def emulates_bf16() -> bool:
    """Whether it is an x86 CPU without AVX-512: bf16 then takes several instructions for each of float32."""
    capabilities = torch.cpu.get_capabilities()
    return capabilities["architecture"] == "x86_64" and not capabilities["avx512_f"]
