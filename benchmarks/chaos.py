"""Kills parts of a sweep while it runs: engines, shards, nodes, the driver, the head, two at once; and hangs some.

    python benchmarks/chaos.py --out FOLDER [--kills 30] [--hangs 3] [--seed 0] [--kinds engine,shard,...]

Runs one sweep of the built-in models with nothing happening to it and once with kills at moments that the seed says, on
a cluster of three raylets of this machine; whatever ends the command is followed by `--resume`. Compares both tables
and both best models byte for byte, and prints what each kind of loss took.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from mergebench_ray.config import Suite
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.runs.trials import Trial, read_trials

DOMAINS = ["coding", "math", "safety"]
CANDIDATES = 8
SWEEP = {
    "name": "chaos",
    "suite": "smollm2-mini",
    "specialists": {name: Suite.load("smollm2-mini").specialists[name] for name in DOMAINS},
    "methods": {
        "task_arithmetic": {"scaling_coef": {"low": 0.0, "high": 1.2, "per": "specialist"}},
        "ties": {"density": {"low": 0.1, "high": 0.9}, "scaling_coef": {"low": 0.1, "high": 1.2}},
    },
    "search": {"trials": CANDIDATES},
    "evaluation": {
        **{"domains": DOMAINS, "validation_items": 12, "test_items": 6, "final_items": 6},
        **{"allow_code_execution": True, "reuse": False},
    },
    "bank": {"shards": 2},
}
# An engine, a shard, a node, the command itself, Ray's head; two at once.
KINDS = ("engine", "shard", "node", "driver", "head", "engine+shard", "shard+driver", "engine+node", "shard+shard")
HANGS = ("engine", "shard")
_ENGINE, _SHARD, _HEAD = "ray::Evaluator", "ray::BankShardActor", "gcs_server"
_SETTLED_SECONDS = 3.0
_PATIENCE_SECONDS = 400


class Machines:
    """Three raylets of this machine: the head, which holds no engine, and two with a core each."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        node = {"object_store_memory": 150 << 20}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **node}
        )
        self._workers = [self._cluster.add_node(num_cpus=1, **node) for _ in range(2)]
        self.address = self._cluster.address

    def lose_node(self, holds: Callable[[int], bool]) -> None:
        """A node is killed, with all that it runs, and another one joins."""
        node = next((one for one in self._workers if holds(_raylet(one))), self._workers[0])
        self._workers.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self._workers.append(self._cluster.add_node(num_cpus=1, object_store_memory=150 << 20))

    def lose_head(self) -> None:
        """The cluster's brain is killed; whoever runs it starts another one."""
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == _HEAD and process.pid in _descendants(os.getpid()):
                process.kill()

    def end(self) -> None:
        """All is gone."""
        self._cluster.shutdown()


def _raylet(node: Any) -> int:
    found: int = node.all_processes["raylet"][0].process.pid
    return found


def _descendants(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def _named(start: str) -> list[psutil.Process]:
    found = []
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if " ".join(process.cmdline()).startswith(start) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


class Sweep:
    """The command, begun again with `--resume` as often as it takes."""

    def __init__(self, folder: Path, machines: Machines) -> None:
        folder.mkdir(parents=True)
        (folder / "sweep.yaml").write_text(to_yaml(SWEEP))
        self.run, self._folder, self._machines = folder / "run", folder, machines
        self.restarts, self.ends = 0, list[str]()
        self._begin()

    def _begin(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "mergebench_ray", "tune", "sweep.yaml", "--out", "run", *arguments]
        self._output = (self._folder / f"output-{self.restarts}.txt").open("w+")
        self.process = subprocess.Popen(
            [*command, "--address", self._machines.address],
            cwd=self._folder,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def is_over(self) -> bool:
        """Whether it has come to its end; where it ended before that, it goes on first."""
        status = self.process.poll()
        if status is None:
            return False
        if status == 0:
            return True
        self.ends.append(self.output().splitlines()[-1][:300] if self.output() else f"status {status}")
        self.restarts += 1
        if self.restarts > 60:
            raise SystemExit(f"it does not come to its end: {self.ends[-1]}")
        self._begin(*(["--resume"] if (self.run / "sweep.yaml").exists() else []))
        return False

    def output(self) -> str:
        self._output.flush()
        return (self._folder / f"output-{self.restarts}.txt").read_text()

    def rows(self) -> list[Trial]:
        with contextlib.suppress(InputError):
            return read_trials(self.run)
        return []


def table(trials: Iterable[Trial]) -> list[tuple[Any, ...]]:
    """All that rows say but times and costs."""
    return [
        (one.role, one.name, one.number, one.split, one.digest, dict(one.domains), dict(one.objectives), one.failure)
        for one in trials
    ]


def best_model(run: Path) -> str:
    """A digest of the weights that were written."""
    content = hashlib.sha256()
    for file in sorted((run / "best" / "model").glob("*.safetensors")):
        content.update(file.read_bytes())
    return content.hexdigest()


class Chaos:
    """Kills and hangs, one after the other, each once the sweep is at work again."""

    def __init__(self, sweep: Sweep, machines: Machines, plan: list[str], seed: int) -> None:
        self.sweep, self.machines, self.plan = sweep, machines, plan
        self._random = random.Random(seed)
        self.took: dict[str, list[float]] = defaultdict(list)
        self.done: list[str] = []

    def run(self) -> None:
        """Until the plan is through or the sweep is."""
        while self.plan and not self._over():
            if not self._at_work():
                time.sleep(0.2)
                continue
            time.sleep(self._random.uniform(0.0, 2 * _SETTLED_SECONDS))
            if self._over():
                return
            kind = self.plan.pop(0)
            at, rows = time.monotonic(), len(self.sweep.rows())
            print(f"{len(self.done) + 1}: {kind}, with {rows} rows", flush=True)
            self.done.append(kind)
            for part in kind.removeprefix("hang ").split("+"):
                self._hit(part, hang=kind.startswith("hang"))
            self._await_work(at, kind)
        while not self._over():
            time.sleep(0.5)

    def _over(self) -> bool:
        return self.sweep.is_over()

    def _at_work(self) -> bool:
        return bool(_named(_ENGINE)) and bool(_named(_SHARD)) and "scoring" in self.sweep.output()

    def _await_work(self, at: float, kind: str) -> None:
        """Until the sweep has scored a model again."""
        rows = len(self.sweep.rows())
        deadline = at + _PATIENCE_SECONDS
        while len(self.sweep.rows()) == rows and not self._over():
            if time.monotonic() > deadline:
                raise SystemExit(f"{kind}: nothing happened for {_PATIENCE_SECONDS} s\n{self.sweep.output()[-3000:]}")
            time.sleep(0.2)
        self.took[kind].append(time.monotonic() - at)

    def _hit(self, part: str, *, hang: bool) -> None:
        number = signal.SIGSTOP if hang else signal.SIGKILL
        if part == "driver":
            self.sweep.process.send_signal(number)
            self.sweep.process.wait()
        elif part == "head":
            self.machines.lose_head()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.sweep.process.wait(timeout=_PATIENCE_SECONDS)
            self.machines.end()
            self.machines.start()
        elif part == "node":
            engines = {process.pid for process in _named(_ENGINE)}
            self.machines.lose_node(lambda raylet: bool(engines & _descendants(raylet)))
        else:
            found = _named(_ENGINE if part == "engine" else _SHARD)
            if found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._random.choice(found).send_signal(number)


def calm_run(folder: Path) -> Path:
    """The sweep with nothing happening to it; one that is there is not run again."""
    run = folder / "calm" / "run"
    if (run / "report.html").exists():
        return run
    machines = Machines()
    began = time.monotonic()
    sweep = Sweep(folder / "calm", machines)
    while not sweep.is_over():
        time.sleep(0.5)
    machines.end()
    print(f"calm: {time.monotonic() - began:.0f} s, {len(sweep.rows())} rows, begun again {sweep.restarts} times")
    return run


def main() -> None:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=lambda text: tuple(text.split(",")), default=KINDS)
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    chosen = random.Random(options.seed)
    plan = [options.kinds[place % len(options.kinds)] for place in range(options.kills)]
    plan += [f"hang {HANGS[place % len(HANGS)]}" for place in range(options.hangs)]
    chosen.shuffle(plan)

    calm = calm_run(options.out)
    machines = Machines()
    began = time.monotonic()
    sweep = Sweep(options.out / f"chaos-{options.seed}-{int(time.time())}", machines)
    chaos = Chaos(sweep, machines, plan, options.seed)
    try:
        chaos.run()
    finally:
        if sweep.process.poll() is None:
            sweep.process.kill()
        machines.end()
    print(f"chaos: {time.monotonic() - began:.0f} s, {len(chaos.done)} of {len(chaos.done) + len(plan)} hits")
    for line in sweep.ends:
        print(f"  ended and went on: {line}")
    log = (sweep.run / "run.log").read_text()
    for line in re.findall(r".*(?:was lost|given up|waits for a node).*", log):
        print(f"  {line}")
    print("seconds until the next model was scored, by kind:")
    for kind, seconds in sorted(chaos.took.items()):
        print(f"  {kind:14} {len(seconds):2} times, median {statistics.median(seconds):5.1f}, most {max(seconds):5.1f}")
    expected, found = table(read_trials(calm)), table(read_trials(sweep.run))
    print(f"rows: {len(expected)} calm, {len(found)} here, {len(found) - len(set(map(str, found)))} repeated")
    print(f"tables are {'the same' if found == expected else 'NOT THE SAME'}")
    same = best_model(calm) == best_model(sweep.run)
    print(f"best models are {'the same, byte for byte' if same else 'NOT THE SAME'}")
    raise SystemExit(0 if found == expected and same else 1)


if __name__ == "__main__":
    main()
