"""Systems that grant the sandbox less: a process gives up user, namespaces or Landlock for good, then runs a script."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

NOBODY = 65534
_PATIENCE_SECONDS = 300
PACKAGE = Path(__file__).parents[2]
SANDBOX = PACKAGE / "mergebench_ray"


@dataclass(frozen=True)
class Setup:
    """What a system grants.

    Attributes:
        user: an ordinary user, not root.
        namespaces: whether new namespaces and mounts are permitted.
        landlock: whether the kernel has Landlock.
    """

    user: bool
    namespaces: bool
    landlock: bool = True

    def __str__(self) -> str:
        return "-".join(
            [
                "user" if self.user else "root",
                "namespaces" if self.namespaces else "no_namespaces",
                *([] if self.landlock else ["no_landlock"]),
            ]
        )

    def missing(self) -> str:
        """Why it cannot be had here; empty if it can."""
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            return "only Linux on x86-64 and AArch64 isolates programs"
        if not self.user and os.geteuid() != 0:
            return "these tests are not run by root"
        done = self.run("import ctypes; print(ctypes.CDLL(None).unshare(0x10000000))")
        if done.returncode:
            return f"an ordinary user cannot run this Python here: {done.stderr.strip()[-200:]}"
        if self.namespaces and done.stdout != "0\n":
            return "this system permits no user namespaces"
        return ""

    def run(
        self, script: str, text: str = "", *, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script that can import the sandbox by itself (`import sandbox.runner`), as well as the package.

        Args:
            script: its source.
            text: its standard input.
            environment: variables to set besides this process's own.
        """
        own = {"PYTHONPATH": f"{SANDBOX}:{PACKAGE}", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, __file__, json.dumps(asdict(self)), script],
            env={**os.environ, **own, **(environment or {})},
            cwd="/",
            input=text,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )


def enter(setup: Setup) -> None:
    """Give up what the set-up does not grant."""
    if setup.user and os.geteuid() == 0:
        open_python_to_everyone()
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # A process that was root is closed to its own user until told otherwise; one that began as a user is not.
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
    refused = {} if setup.namespaces else {"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40)}
    if not setup.landlock:
        refused["landlock_create_ruleset"] = (444, 444)
    if refused:
        refuse(refused)


def open_python_to_everyone() -> None:
    """Show Python's own folder to ordinary users, in mounts of this process alone, where root keeps it for itself."""
    prefix = Path(sys.base_prefix)
    closed = [folder for folder in reversed(prefix.parents) if not folder.stat().st_mode & 0o001]
    if not closed:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    aside = tempfile.mkdtemp()
    _must(libc.unshare(0x20000))
    _must(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))
    _must(libc.mount(os.fsencode(prefix), aside.encode(), None, 0x1000 | 0x4000, None))
    _must(libc.mount(b"none", os.fsencode(closed[0]), b"tmpfs", 0, b"mode=755"))
    prefix.mkdir(parents=True)
    _must(libc.mount(aside.encode(), os.fsencode(prefix), None, 0x1000 | 0x4000, None))
    _must(libc.umount2(aside.encode(), 2))
    os.rmdir(aside)


def _must(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "mounts cannot be changed")


def refuse(calls: dict[str, tuple[int, int]]) -> None:
    """Answer these system calls (numbers on x86-64 and AArch64) as a kernel does that does not permit or know them."""
    machine = ("x86_64", "aarch64").index(platform.machine())
    lines = [(0x20, 0, 0, 0)]
    for name, numbers in calls.items():
        code = errno.ENOSYS if name.startswith("landlock") else errno.EPERM
        lines += [(0x15, 0, 1, numbers[machine]), (0x06, 0, 0, 0x00050000 | code)]
    lines.append((0x06, 0, 0, 0x7FFF0000))
    text = b"".join(
        code.to_bytes(2, "little") + bytes([yes, no]) + operand.to_bytes(4, "little")
        for code, yes, no, operand in lines
    )
    buffer = ctypes.create_string_buffer(text)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("lines", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.prctl(38, 1, 0, 0, 0))
    _must(libc.prctl(22, 2, ctypes.byref(Program(len(lines), ctypes.addressof(buffer))), 0, 0))


if __name__ == "__main__":
    enter(Setup(**json.loads(sys.argv[1])))
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
