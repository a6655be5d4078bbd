"""Hosts of a small network on this machine: each has its own address, processes, HOME, `/tmp/ray` and `/dev/shm`.

They are Linux namespaces. Each host has a first process, which ends when this process does; the kernel then ends all
others of that host, and with the last one its network: nothing of them outlives a test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_NETWORK = "10.213.7"
_SHARED_MEMORY = "size=2g"
_ENTERED = ["net", "mount", "uts", "ipc", "pid"]
_NEW = ["unshare", *(f"--{kind}" for kind in _ENTERED), "--fork", "--mount-proc", "--kill-child"]
_UNTIL_ORPHANED = "echo up; cat > /dev/null"  # the shell also takes in what others leave behind
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(256 << 20),
    "RAY_prestart_worker_first_driver": "0",
}
_SCP = """#!/bin/bash
# Stands for scp FROM_HOST:FILE TO: the files of all hosts are in one folder here.
exec cp "{homes}/${{1%%:*}}/${{1#*:}}" "$2"
"""


class Host:
    """A host that runs; made by `hosts`.

    Attributes:
        address: its IPv4 address.
        home: the HOME of whoever works there.
    """

    def __init__(self, address: str, home: Path, process: int, path: str) -> None:
        self.address, self.home = address, home
        self._process, self._path = process, path

    def run(
        self, script: str, *, folder: Path, home: Path | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of Bash as someone does who has just logged in on this host, in a folder.

        Args:
            script: what is typed.
            folder: where.
            home: another HOME than the host's.
            timeout: seconds after which it is given up.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return _there(
            self._process,
            *_ENTERED,
            command=["bash", "-e", "-c", f"cd '{folder}'\n{script}"],
            env={**kept, **_SETTINGS, "PATH": self._path, "HOME": str(home or self.home)},
            timeout=timeout,
        )


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """So many hosts that reach each other and nothing else; they end with the block.

    Args:
        count: at most 200.
        folder: for their files; its path has to be short, as Ray makes sockets below it.

    Raises:
        RuntimeError: where namespaces cannot be made; with what was said.
    """
    path = f"{_stand_ins(folder)}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with ExitStack() as stack:
        switch = stack.enter_context(_first_process("true"))
        _ip(switch, f"link add switch type bridge\naddr add {_NETWORK}.254/24 dev switch\nlink set switch up")
        names = folder / "hosts"
        lines = [f"{_NETWORK}.{number} host{number}" for number in range(1, count + 1)]
        names.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        made = []
        for number in range(1, count + 1):
            address = f"{_NETWORK}.{number}"
            home, temporary = folder / "homes" / address, folder / "tmp" / address
            for one in (home, temporary):
                one.mkdir(parents=True)
            Path("/tmp/ray").mkdir(exist_ok=True)  # only to put the host's own over it
            process = stack.enter_context(
                _first_process(
                    f"hostname host{number}; mount --bind '{names}' /etc/hosts; mount --bind '{temporary}' /tmp/ray; "
                    f"mount -t tmpfs -o {_SHARED_MEMORY} tmpfs /dev/shm"
                )
            )
            _ip(
                switch,
                f"link add to{number} type veth peer name eth0 netns {process}\n"
                f"link set to{number} master switch\nlink set to{number} up",
            )
            _ip(
                process,
                f"addr add {address}/24 dev eth0\nlink set lo up\nlink set eth0 up\n"
                f"route add default via {_NETWORK}.254",
            )
            made.append(Host(address, home, process, path))
        yield made


def _stand_ins(folder: Path) -> Path:
    """A folder with what a host's programs are replaced by."""
    programs = folder / "bin"
    programs.mkdir()
    copy = programs / "scp"
    copy.write_text(_SCP.format(homes=folder / "homes"))
    copy.chmod(0o755)
    return programs


@contextmanager
def _first_process(preparation: str) -> Iterator[int]:
    """The first process of new namespaces, by its number out here."""
    process = subprocess.Popen(
        [*_NEW, "bash", "-e", "-c", f"{preparation}; {_UNTIL_ORPHANED}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        if process.stdout.readline() != "up\n":
            raise RuntimeError(process.stderr.read().strip() or "unshare fails")
        yield int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    finally:
        process.kill()  # and with it, by --kill-child, the first process
        process.communicate()


def _ip(process: int, commands: str) -> None:
    """Commands of `ip`, in the network of a process."""
    done = _there(process, "net", command=["ip", "-batch", "-"], stdin=commands)
    if done.returncode:
        raise RuntimeError(f"ip: {done.stderr.strip()}")


def _there(
    process: int,
    *namespaces: str,
    command: list[str],
    stdin: str = "",
    env: dict[str, str] | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a command in namespaces of a process."""
    enter = ["nsenter", f"--target={process}", *(f"--{kind}" for kind in namespaces), "--"]
    return subprocess.run(
        [*enter, *command], input=stdin, env=env, timeout=timeout, capture_output=True, text=True, check=False
    )
