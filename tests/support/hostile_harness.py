"""Run hostile programs beside things that they could harm; print what became of them and what they harmed.

Run by itself, with the folder around the sandbox on the path. Standard input: JSON, name -> [program, check].
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import sandbox.runner as sandbox  # type: ignore[import-not-found]

FILES_OF_THE_SANDBOX = sorted(Path(sandbox.__file__).parent.glob("*.py"))
WORKERS = 4


def main() -> None:
    """Print JSON: `results` by name, `harm` in words, and `most_bytes` that lay in temporary folders."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # what outlives its parents comes to this process
    programs = json.load(sys.stdin)
    folder = tempfile.mkdtemp()
    tempfile.tempdir = os.path.join(folder, "temporary")
    os.mkdir(tempfile.tempdir)
    private = Path(folder, "private")
    private.write_text(os.environ["HOSTILE_SECRET"])
    private.chmod(0o600)
    before = private.stat()
    code = [path.read_bytes() for path in FILES_OF_THE_SANDBOX]
    victim = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
    port, abstract = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    name = f"hostile-{os.getpid()}"
    abstract.bind(f"\0{name}")
    abstract.listen()
    words = {
        "VICTIM": str(victim.pid),
        "PRIVATE": str(private),
        "PORT": str(port.getsockname()[1]),
        "SOCKET": name,
        "SANDBOX": str(Path(sandbox.__file__).parent),
    }
    disk = Disk(tempfile.tempdir)
    results = run(programs, words)
    harm = [f"left in {tempfile.tempdir}: {left}" for left in os.listdir(tempfile.tempdir)]
    harm += [f"{listener} was reached" for listener in (port, abstract) if reached(listener)]
    if victim.poll() is not None or nice(victim.pid) != nice(os.getpid()):
        harm.append(f"the victim was ended or changed: {victim.poll()}")
    victim.kill()
    victim.wait()
    after = private.stat()
    if (after.st_mode, after.st_mtime, private.read_text()) != (
        before.st_mode,
        before.st_mtime,
        os.environ["HOSTILE_SECRET"],
    ):
        harm.append("the private file was changed")
    if [path.read_bytes() for path in FILES_OF_THE_SANDBOX] != code:
        harm.append("the sandbox's files were changed")
    harm += left_over()
    most = disk.stop()
    private.unlink()
    os.rmdir(tempfile.tempdir)
    os.rmdir(folder)
    json.dump({"results": results, "harm": harm, "most_bytes": most}, sys.stdout)


def run(programs: dict[str, tuple[str, str, float]], words: dict[str, str]) -> dict[str, Any]:
    """Outcome and message of each program, of which there are text, check and seconds."""
    with sandbox.SandboxPool(num_workers=WORKERS) as pool:
        futures = {}
        for name, (text, check, seconds) in programs.items():
            for word, value in words.items():
                text = text.replace(word, value)
            limits = sandbox.Limits(wall_seconds=seconds, cpu_seconds=1, folder_bytes=4 * 2**20)
            futures[name] = pool.submit(sandbox.Program(text, check), limits=limits)
        return {name: [future.result().outcome, future.result().message] for name, future in futures.items()}


class Disk:
    """Watches how much a folder holds."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._most = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        """Largest number of bytes seen."""
        self._stopped.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            num_bytes = 0
            for place, _, names in os.walk(self._folder):
                for name in names:
                    with contextlib.suppress(OSError):
                        num_bytes += os.lstat(os.path.join(place, name)).st_blocks * 512
            self._most = max(self._most, num_bytes)


def reached(listener: socket.socket) -> bool:
    """Whether somebody connected."""
    listener.settimeout(0)
    try:
        listener.accept()
    except BlockingIOError:
        return False
    return True


def nice(process: int) -> tuple[int, list[int]]:
    """Priority and processors of a process."""
    return os.getpriority(os.PRIO_PROCESS, process), sorted(os.sched_getaffinity(process))


def left_over() -> list[str]:
    """What programs left in the system."""
    found = [f"file {path}" for path in (Path("/dev/shm/hostile"), Path("/tmp/hostile")) if path.exists()]
    for kind in ("shm", "sem", "msg"):
        lines = Path("/proc/sysvipc", kind).read_text().splitlines()[1:]
        found += [f"{kind} {line}" for line in lines if int(line.split()[0]) == 0x6D6572]
    found += [f"key {line}" for line in Path("/proc/keys").read_text().splitlines() if "hostile" in line]
    deadline = time.monotonic() + 5.0
    while (children := Path("/proc/self/task", str(os.getpid()), "children").read_text().split()) and (
        time.monotonic() < deadline
    ):
        os.waitpid(-1, os.WNOHANG)
        time.sleep(0.01)
    return found + [f"process {child}" for child in children]


if __name__ == "__main__":
    main()
