from __future__ import annotations

from collections.abc import Iterator

import pytest

from mergebench_ray.kernels.compilers import compiling_here


@pytest.fixture
def compiled_here() -> Iterator[None]:
    """What is missing is compiled in this process: 5 s a kernel, where one of its own takes 15."""
    with compiling_here():
        yield
