"""Kills parts of a sweep while it runs: engines, shards, nodes, the driver, the head, two at once; and hangs some.

    python benchmarks/chaos.py --out FOLDER [--kills 30] [--hangs 3] [--seed 0] [--kinds engine,shard,...] [--minutes 8]

Runs one sweep of the built-in models with nothing happening to it and once with kills at moments that the seed says, on
a cluster of three raylets of this machine; whatever ends the command is followed by `--resume`. Compares both tables
and both best models byte for byte, and prints what each kind of loss took. With `--minutes` a sitting ends after so
many, and all it has started with it; the same command goes on, until there is nothing left to do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
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
CANDIDATES = 60  # so that the sweep is not over before the last kill
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
        **{"domains": DOMAINS, "validation_items": 6, "test_items": 4, "final_items": 4},
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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.yaml").write_text(to_yaml(SWEEP))
        self.run, self._folder, self._machines = folder / "run", folder, machines
        self.begun, self.ends = len([*folder.glob("output-*.txt")]), list[str]()
        self._begin()

    def _begin(self) -> None:
        command = [sys.executable, "-m", "mergebench_ray", "tune", "sweep.yaml", "--out", "run"]
        command += ["--resume"] if (self.run / "sweep.yaml").exists() else []
        self._file = self._folder / f"output-{self.begun}.txt"
        self.begun += 1
        self._output = self._file.open("w+")
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
        if len(self.ends) > 60:
            raise SystemExit(f"it does not come to its end: {self.ends[-1]}")
        self._begin()
        return False

    def output(self) -> str:
        self._output.flush()
        return self._file.read_text()

    def steps(self) -> int:
        """Steps of candidates, and models, that have come to their end: each is on disk before the next begins."""
        decisions = self.run / "decisions.jsonl"
        return len(self.rows()) + (len(decisions.read_text().splitlines()) if decisions.exists() else 0)

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


class State:
    """What was done in all sittings, kept in a file.

    Args:
        file: of it.
        plan: of the hits, where there is no such file.
    """

    def __init__(self, file: Path, plan: list[str]) -> None:
        self._file = file
        kept = json.loads(file.read_text()) if file.exists() else {}
        self.plan: list[str] = kept.get("plan", plan)
        self.took: dict[str, list[float]] = defaultdict(list, kept.get("took", {}))
        self.seen = set[str](kept.get("seen", []))
        self.ends: list[str] = kept.get("ends", [])
        self.seconds: float = kept.get("seconds", 0.0)

    def write(self) -> None:
        """Keep it."""
        kept = {"plan": self.plan, "took": self.took, "seen": sorted(self.seen), "ends": self.ends}
        self._file.write_text(json.dumps({**kept, "seconds": self.seconds}))

    @property
    def hits(self) -> int:
        """How many there were."""
        return sum(map(len, self.took.values()))


class Chaos:
    """Kills and hangs, one after the other, each once the sweep is at work again."""

    def __init__(self, sweep: Sweep, machines: Machines, state: State, calm: Path, seed: int, until: float) -> None:
        self.sweep, self.machines, self.state, self._until = sweep, machines, state, until
        self._expected = table(read_trials(calm))
        self._hit_pids = set[int]()
        self._random = random.Random(f"{seed} {state.hits}")

    def run(self) -> bool:
        """Until the plan is through and the sweep is; False where the sitting ends before."""
        plan = self.state.plan
        while not self._over():
            if time.monotonic() > self._until:
                return False
            if not plan or not self._at_work():
                time.sleep(0.2)
                continue
            time.sleep(self._random.uniform(0.0, 2 * _SETTLED_SECONDS))
            if self._over():
                break
            kind, at, steps = plan[0], time.monotonic(), self.sweep.steps()
            rows = self.sweep.rows()
            strays = len([one for one in table(rows) if one not in self._expected])
            print(f"{self.state.hits + 1}: {kind}, with {len(rows)} rows, {strays} of them strange", flush=True)
            self.state.seen |= {repr(one) for one in rows}
            self._hit_pids.clear()
            for part in kind.removeprefix("hang ").split("+"):
                self._hit(part, hang=kind.startswith("hang"))
            self._await_work(at, kind, steps)
            plan.pop(0)
            self.state.write()
        return True

    def _over(self) -> bool:
        return self.sweep.is_over()

    def _at_work(self) -> bool:
        # One that goes on may have nothing to say before its next candidate.
        begun = self.sweep.steps() > 0 or "scoring" in self.sweep.output()
        return begun and bool(_named(_ENGINE)) and bool(_named(_SHARD))

    def _await_work(self, at: float, kind: str, steps: int) -> None:
        """Until the sweep has come a step further."""
        deadline = at + _PATIENCE_SECONDS
        while self.sweep.steps() == steps and not self._over():
            if time.monotonic() > deadline:
                raise SystemExit(f"{kind}: nothing happened for {_PATIENCE_SECONDS} s\n{self.sweep.output()[-3000:]}")
            time.sleep(0.2)
        self.state.took[kind].append(time.monotonic() - at)
        print(f"   {self.state.took[kind][-1]:.0f} s", flush=True)

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
            found = [one for one in _named(_ENGINE if part == "engine" else _SHARD) if one.pid not in self._hit_pids]
            if found:
                chosen = self._random.choice(found)
                self._hit_pids.add(chosen.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    chosen.send_signal(number)


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
    print(f"calm: {time.monotonic() - began:.0f} s, {len(sweep.rows())} rows, begun again {len(sweep.ends)} times")
    return run


def main() -> None:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=lambda text: tuple(text.split(",")), default=KINDS)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="of a sitting; the same command goes on")
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing that was started may stay behind
    until = time.monotonic() + 60 * options.minutes
    calm = calm_run(options.out)
    folder = options.out / f"chaos-{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    state = State(folder / "state.json", planned(options.kinds, options.kills, options.hangs, options.seed))
    machines, began = Machines(), time.monotonic()
    sweep = Sweep(folder, machines)
    try:
        is_over = Chaos(sweep, machines, state, calm, options.seed, until).run()
    finally:
        if sweep.process.poll() is None:
            sweep.process.kill()
        machines.end()
        state.ends += sweep.ends
        state.seconds += time.monotonic() - began
        state.write()
    if not is_over:
        print(f"{state.hits} hits, {len(state.plan)} to come: the same command goes on")
        raise SystemExit(3)
    raise SystemExit(0 if told(state, calm, sweep.run) else 1)


def planned(kinds: tuple[str, ...], kills: int, hangs: int, seed: int) -> list[str]:
    """Hits in an order that the seed says, each kind as often as the others."""
    plan = [kinds[place % len(kinds)] for place in range(kills)]
    plan += [f"hang {HANGS[place % len(HANGS)]}" for place in range(hangs)]
    random.Random(seed).shuffle(plan)
    return plan


def told(state: State, calm: Path, run: Path) -> bool:
    """Whether both came to the same; what was seen is printed."""
    print(f"chaos: {state.seconds:.0f} s, {state.hits} hits, {len(state.plan)} planned that found it over")
    for line in state.ends:
        print(f"  ended and went on: {line}")
    log = (run / "run.log").read_text()
    for line in re.findall(r".*(?:was lost|given up|waits for a node).*", log):
        print(f"  {line}")
    print("seconds until the next step of a candidate, by kind:")
    for kind, seconds in sorted(state.took.items()):
        print(f"  {kind:14} {len(seconds):2} times, median {statistics.median(seconds):5.1f}, most {max(seconds):5.1f}")
    expected, rows = table(read_trials(calm)), read_trials(run)
    found = table(rows)
    # With times and costs, in which a model that was scored again would differ.
    lost = state.seen - {repr(one) for one in rows}
    repeated = len(found) - len(set(map(str, found)))
    print(f"rows: {len(expected)} calm, {len(found)} here, {len(lost)} lost or scored again, {repeated} repeated")
    print(f"tables are {'the same' if found == expected else 'NOT THE SAME'}")
    same = best_model(calm) == best_model(run)
    print(f"best models are {'the same, byte for byte' if same else 'NOT THE SAME'}")
    return found == expected and same and not lost and not repeated


if __name__ == "__main__":
    main()
