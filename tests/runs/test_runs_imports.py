"""What a run holds can be read by a small program."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from mergebench_ray import runs

HEAVY = ("lm_eval", "optuna", "pandas", "plotly", "ray", "torch", "transformers", "vllm")


def test_importing_what_a_run_holds_loads_nothing_heavy() -> None:
    modules = [
        "mergebench_ray.runs",
        *(module.name for module in pkgutil.iter_modules(runs.__path__, "mergebench_ray.runs.")),
    ]
    program = f"import sys, {', '.join(modules)}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
