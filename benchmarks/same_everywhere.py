"""The same sweep on one raylet, on three of one host, and on three hosts: the same trials, the same best model.

    python benchmarks/same_everywhere.py [--trials N] [--shards N] [--engines N]

The hosts are network namespaces with addresses, processes and homes of their own, so this wants to be root. Models are
tiny and random, suite and sweep are the tutorial's; bank, engines and search are the real ones, vLLM among them.
Compared are each trial's recipe and scores, and the best model's weights and recipe, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from hosts import Host, hosts
from tiny_models import tiny_llama, tiny_specialist

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
DOMAINS = ["math", "coding", "french", "law", "medicine"]
SETTINGS = {"one raylet": (1, 1), "three raylets of one host": (1, 3), "three hosts": (3, 3)}
"""Hosts and raylets."""
_NOT_COMPARED = re.compile(r"seconds|started|finished|engine|version|^record$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--engines", type=int, default=1)
    given = parser.parse_args()
    options = f"--set search.trials={given.trials} --set bank.shards={given.shards} --set engine.count={given.engines}"
    os.environ["PYTHONPATH"] = str(ROOT)
    with scratch_folder() as folder:
        prepare(folder)
        found = {name: outcome(folder, name, options) for name in SETTINGS}
    first = next(iter(found.values()))
    for name, (trials, files, seconds) in found.items():
        print(
            f"{name}: {len(trials)} rows in {seconds:.0f} s; trials {'the same' if trials == first[0] else 'DIFFER'}, "
            f"best model {'the same' if files == first[1] else 'DIFFERS'} ({len(files)} files)"
        )
    if any((trials, files) != first[:2] for trials, files, _ in found.values()):
        raise SystemExit(1)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder with a short path, as Ray makes sockets below it."""
    folder = Path(tempfile.mkdtemp(prefix="mergebench-ray-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def prepare(folder: Path) -> None:
    """Tiny models, and the tutorial's files, up to its first command of ours."""
    base = tiny_llama(folder / "models" / "base")
    for seed, domain in enumerate(DOMAINS):
        tiny_specialist(folder / "models" / domain, base, seed=seed, scale=0.5)
    for language, title, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")):
        if title:
            (folder / title).parent.mkdir(exist_ok=True)
            (folder / title).write_text(text, encoding="utf-8")
        elif language == "bash":
            if "mergebench-ray" in text:
                return
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["bash", "-e", "-c", text], cwd=folder, env={**os.environ, "PATH": path}, check=True)


def outcome(folder: Path, name: str, options: str) -> tuple[list[dict[str, Any]], dict[str, str], float]:
    """What a run found in a setting: its rows, digests of the best model's files, seconds of the search."""
    count, raylets = SETTINGS[name]
    network = folder / name.replace(" ", "-")
    network.mkdir()
    with hosts(count, network) as made:
        start(made, raylets)
        began = time.perf_counter()
        run = network / "run"
        address = f"{made[0].address}:6379"
        search = f"mergebench-ray tune sweep.yaml {options} --out '{run}' --address {address}"
        typed(made[-1], search, folder)
        seconds = time.perf_counter() - began
    rows = [
        {key: value for key, value in row.items() if not _NOT_COMPARED.search(key)}
        for row in pq.read_table(run / "trials.parquet").to_pylist()
    ]
    best = [run / "best" / "recipe.yaml", *sorted((run / "best" / "model").glob("*.safetensors"))]
    files = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in best}
    return rows, files, seconds


def start(made: list[Host], raylets: int) -> None:
    """Start a cluster with a token, as cluster/README.md does; a host's raylets join one after the other."""
    head = made[0]
    typed(
        head, "ray get-auth-token --generate\nRAY_AUTH_MODE=token ray start --head --port=6379 --num-cpus=2", head.home
    )
    for number in range(1, raylets):
        host = made[number % len(made)]
        if host is not head:
            copy = f"mkdir -p ~/.ray\nscp {head.address}:.ray/auth_token ~/.ray/auth_token"
            typed(host, copy, host.home)
        typed(host, f"RAY_AUTH_MODE=token ray start --address={head.address}:6379 --num-cpus=2", host.home)


def typed(host: Host, script: str, folder: Path) -> None:
    """Run something on a host that has to work."""
    done = host.run(script, folder=folder, timeout=900)
    if done.returncode:
        raise SystemExit(f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
