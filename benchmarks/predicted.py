"""What a plan says a run takes, beside what it took: memory of all its processes, and seconds of its steps.

    python benchmarks/predicted.py RUN [--sweep sweeps/quickstart.yaml] [--nodes 1] [--set KEY=VALUE ...]

Memory is the proportional share (PSS) of every process below this one, sampled while the run goes on: pages that a bank
and an engine share count once. The parts that were there at the peak are those of `plan.json` but calibration, which
was over. Seconds are medians over the candidates, which have to be scored in full. With several nodes, as many raylets
of this machine stand for them, of which each says that it has all of its memory.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from mergebench_ray.commands.terminal.options import parse_settings
from mergebench_ray.commands.tune import tune
from mergebench_ray.machine import available_memory
from mergebench_ray.placement.costs import Estimate
from mergebench_ray.placement.placement import Placement
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.trials import read_trials

_SAMPLE_SECONDS = 1.0
_KINDS = {"ray::BankShard": "shard", "ray::Evaluator": "engine"}


class Memory:
    """Samples what this process and all below it have in memory, by what they are, until it is left."""

    def __init__(self) -> None:
        self.peak: dict[str, int] = defaultdict(int)
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            now: dict[str, int] = defaultdict(int)
            this = psutil.Process()
            for process in (this, *this.children(recursive=True)):
                with suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    kind = next((kind for start, kind in _KINDS.items() if title.startswith(start)), None)
                    if kind is None:
                        kind = "driver" if process == this or title.startswith("ray::") else "Ray itself"
                    now[kind] += process.memory_full_info().pss
            now["together"] = sum(now.values())
            for kind, size in now.items():
                self.peak[kind] = max(self.peak[kind], size)


def raylets(nodes: int, store: int, stack: ExitStack) -> None:
    """Connect to a cluster of this machine; what of its memory is whose, the plan says."""
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "memory": available_memory(), "object_store_memory": store}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    stack.callback(cluster.shutdown)
    for _ in range(nodes - 1):
        cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    stack.callback(ray.shutdown)


def figures_of(folder: Path, peak: dict[str, int]) -> dict[str, Any]:
    """Predicted and measured, with their ratio."""
    plan = json.loads(RunFolder(folder).plan_file.read_text(encoding="utf-8"))
    placement, reckoned = Placement.model_validate(plan["placement"]), Estimate.model_validate(plan["estimate"])
    planned: dict[str, int] = defaultdict(int)
    for one in placement.placed:
        if one.part.kind not in ("calibration", "object store"):
            planned[one.part.kind] += one.part.host_memory
    planned["together"] = sum(planned.values())
    trials = [one for one in read_trials(folder) if one.role == "candidate" and one.split == "validation"]
    pairs: dict[str, tuple[float, float]] = {
        f"{kind}: GiB": (size / 2**30, peak[kind] / 2**30) for kind, size in planned.items()
    }
    for step in ("merge", "load"):
        seconds = [getattr(trial, f"{step}_seconds") for trial in trials]
        pairs[f"{step}: seconds"] = (getattr(reckoned, f"{step}_seconds"), median(seconds))
    scored = median(trial.score_seconds for trial in trials)
    pairs["answers: seconds"] = (reckoned.answer_seconds, scored)
    pairs["a candidate: seconds"] = (
        reckoned.candidate_seconds,
        median(trial.merge_seconds + trial.load_seconds + trial.score_seconds for trial in trials),
    )
    tokens = median(trial.tokens / sum(one.items for one in trial.domains.values()) for trial in trials)
    pairs["an item: tokens"] = (reckoned.tokens.prompt + reckoned.tokens.answer, tokens)
    return {name: {"predicted": a, "measured": b, "ratio": a / b if b else None} for name, (a, b) in pairs.items()}


def main() -> None:
    """Run, and print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sweep", default="sweeps/quickstart.yaml")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--store", type=int, default=512, help="MiB of the object store of each of several nodes")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    began = time.perf_counter()
    with ExitStack() as stack:
        if given.nodes > 1:
            raylets(given.nodes, given.store << 20, stack)
        memory = stack.enter_context(Memory())
        tune(given.sweep, given.run, overrides=parse_settings(given.settings), show_progress=True)
    print(f"{time.perf_counter() - began:.0f} s\n\n| what | predicted | measured | ratio |\n| --- | --- | --- | --- |")
    for name, row in figures_of(given.run, memory.peak).items():
        print(f"| {name} | {row['predicted']:.2f} | {row['measured']:.2f} | {row['ratio']:.2f} |")
    print(f"| Ray itself: GiB | | {memory.peak['Ray itself'] / 2**30:.2f} | |")


if __name__ == "__main__":
    main()
