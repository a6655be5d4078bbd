"""Tries new made-up inputs on everything that reads what users write, for a given time.

    python benchmarks/fuzz.py [--minutes 10] [--only NAME]

Runs tests/*/test_fuzz_*.py again and again, each round with a new seed, and prints how many inputs were tried, how many
tests found one that fails, how many rounds hung, and what was left over: files in the temporary folder, in shared
memory or in the repository, and processes. Exit status 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parent.parent
HANG_SECONDS = 300  # of one test, which tries 250 inputs
SHARED_MEMORY = Path("/dev/shm")


def main() -> None:
    """Run rounds until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", default="", help="Only files whose name holds this.")
    arguments = parser.parse_args()
    files = sorted(str(file) for file in (REPOSITORY / "tests").rglob("test_fuzz_*.py") if arguments.only in file.name)
    if not files:
        sys.exit("no such tests")
    end = time.monotonic() + 60 * arguments.minutes
    inputs = failed = hung = rounds = 0
    left: set[str] = set()
    while time.monotonic() < end:
        rounds += 1
        seed = random.SystemRandom().randrange(2**32)
        tried, failures, was_stopped, leftovers = run_round(files, seed)
        inputs, failed, hung, left = inputs + tried, failed + failures, hung + was_stopped, left | leftovers
        print(f"round {rounds}, seed {seed}: {tried} inputs, {failures} failures", flush=True)
    print(f"{rounds} rounds, {inputs} inputs: {failed} failures, {hung} hangs, {len(left)} leftovers")
    for one in sorted(left):
        print(f"left over: {one}")
    sys.exit(bool(failed or hung or left))


def run_round(files: Sequence[str], seed: int) -> tuple[int, int, bool, set[str]]:
    """All tests once: inputs tried, tests that failed, whether it hung, what was left over."""
    before = things_that_stay()
    with tempfile.TemporaryDirectory() as tests_folder, tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tests_folder}/tests"]
        # A slow input fails by the profile's deadline; one that never ends is shown by the timeout, with its stack.
        command += [
            "--hypothesis-profile=campaign",
            f"--hypothesis-seed={seed}",
            "-o",
            f"faulthandler_timeout={HANG_SECONDS}",
        ]
        command += ["-o", "faulthandler_exit_on_timeout=true", *files]
        environment = {**os.environ, "TMPDIR": temporary, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate()
        finally:
            survivors = {f"process: {text}" for text in end_session(process.pid)}
        # torch's cache of compiled code is there to stay.
        stayed = [path.name for path in Path(temporary).iterdir() if not path.name.startswith("torchinductor_")]
        left = survivors | {f"file: {name}" for name in stayed}
    hung = "Timeout (" in output
    if process.returncode:
        print(output, flush=True)
    tried = re.search(r"tried (\d+) inputs", output)
    failures = re.search(r"(\d+) failed", output)
    errors = re.search(r"(\d+) error", output)
    count = sum(int(found[1]) for found in (failures, errors) if found)
    if process.returncode and not (count or hung):
        count = 1
    return int(tried[1]) if tried else 0, count, hung, left | (things_that_stay() - before)


def things_that_stay() -> set[str]:
    """Files in shared memory, and what git sees as new in the repository."""
    shared = {f"file: {path}" for path in SHARED_MEMORY.glob("mergebench*")} if SHARED_MEMORY.is_dir() else set()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True)
    return shared | {f"repository: {line}" for line in status.stdout.splitlines() if line.startswith("??")}


def end_session(leader: int) -> list[str]:
    """End processes that a round left behind; returns their command lines."""
    survivors = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if os.getsid(process.pid) != leader or process.status() == psutil.STATUS_ZOMBIE:
                continue
            survivors.append(" ".join(process.info["cmdline"] or [])[:200])
            process.send_signal(signal.SIGKILL)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return survivors


if __name__ == "__main__":
    main()
