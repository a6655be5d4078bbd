"""What the sandbox asks of the kernel about processes: users, namespaces, limits, and the end of what is left over.

Imported by the sandbox's own small interpreter, so by itself and with the standard library only. Everything that is
given up here is given up for good. What the system does not grant is left out and reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

LINUX = sys.platform == "linux"

_REAP_SECONDS = 5.0
_DIE_WITH_PARENT, _SET_DUMPABLE, _KEEP_CAPABILITIES, _SET_SUBREAPER, _NO_NEW_PRIVILEGES = 1, 4, 8, 36, 38
_CAPABILITIES_VERSION = 0x20080522
_READ_ANY_FILE = 1 << 2  # CAP_DAC_READ_SEARCH
_NEW_MOUNTS, _NEW_IPC, _NEW_USERS, _NEW_PROCESSES, _NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RECURSIVE, _PRIVATE = 0x4000, 0x40000
# Nobody is numbered as high as this; but a container may know fewer users, the last of which is `nobody`.
_FIRST_UNUSED_USER = 0x70000000
NOBODY = 65534
_MOST_PROCESSES = 2**22  # that Linux ever has
_REPORT_BYTES = 65536


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def in_fork(work: Callable[[], Any]) -> Any:
    """Plain data that a function returns in a process of its own, whose rights are lost with it; None if it fails."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    found = os.read(reading, _REPORT_BYTES)
    os.close(reading)
    os.waitpid(process, 0)
    return json.loads(found) if found else None


def unprivileged_user() -> int | None:
    """A user to run programs as, another one for each caller; None unless this is root and may become that user."""
    if not LINUX or os.geteuid() != 0:
        return None
    return next(filter(may_become, (_FIRST_UNUSED_USER + os.getpid(), NOBODY)), None)


def may_become(user: int | None) -> bool:
    """Whether this process may become a user; nothing has to be done for None."""
    return user is None or in_fork(functools.partial(_become, user)) is not None


def _become(user: int) -> int:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    return user


def enter_namespaces(user: int | None = None) -> bool:
    """Move into an own network, process table, mounts and message queues; return whether the system agreed.

    The caller comes back as process 1 of the new table: when it ends, the kernel ends everything it left behind. The
    process that called stays outside, waits, and never returns from here.

    Args:
        user: one that processes inside are to become.
    """
    if not LINUX or not _unshare(user):
        return False
    inside = os.fork()
    if inside:
        os.waitpid(inside, 0)
        os._exit(0)
    die_with_parent()
    return True


def _unshare(user: int | None) -> bool:
    libc = _libc()
    namespaces = _NEW_MOUNTS | _NEW_PROCESSES | _NEW_NETWORK | _NEW_IPC
    reading, writing = os.pipe()
    helper = os.fork()  # it stays outside, where one may say who is who inside
    if helper == 0:
        os.close(writing)
        with contextlib.suppress(OSError):
            if os.read(reading, 1):
                _map_users(os.getppid(), user)
        os._exit(0)
    os.close(reading)
    agreed = libc.unshare(_NEW_USERS | namespaces) == 0
    if agreed:
        os.write(writing, b"1")
    os.close(writing)
    os.waitpid(helper, 0)
    if not agreed and os.geteuid() == 0:
        # Where user namespaces are forbidden, root may do without; its mounts then are the system's until cut off.
        agreed = libc.unshare(namespaces) == 0 and libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) == 0
    return bool(agreed)


def _map_users(process: int, user: int | None) -> None:
    here = (os.geteuid(), os.getegid())
    also = "" if user is None else f"\n{user} {user} 1"
    texts = [(f"{kind}_map", f"{own} {own} 1{also}") for kind, own in zip(("uid", "gid"), here, strict=True)]
    if user is None:
        texts.insert(0, ("setgroups", "deny"))  # the kernel asks it of everyone but root
    for name, text in texts:
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(text)


def die_with_parent() -> None:
    """Be killed when the process above this one ends; lost when a process becomes another user."""
    if LINUX:
        _libc().prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def keep_memory_private() -> None:
    """Let no other process of this user read this one's memory or descriptors; children inherit it."""
    if LINUX:
        _libc().prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def give_up_privileges(user: int | None, *, read_any_file: bool = False) -> None:
    """Become an ordinary process without any capability.

    Args:
        user: whom to become; None to stay who this is. Root without capabilities still owns root's files.
        read_any_file: keep the right to read files of all users, for where Python itself is out of an ordinary user's
            reach. What may be read then is up to Landlock.
    """
    if not LINUX:
        return
    libc = _libc()
    if user is not None:
        libc.prctl(_KEEP_CAPABILITIES, int(read_any_file), 0, 0, 0)
        _become(user)
    kept = _READ_ANY_FILE if read_any_file else 0
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), effective_permitted_inheritable)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    keep_memory_private()
    die_with_parent()


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own, so that `end_descendants` finds it."""
    if LINUX:
        _libc().prctl(_SET_SUBREAPER, 1, 0, 0, 0)


def end_descendants() -> dict[int, int]:
    """Kill and reap every process below this one, daemons included; return exit statuses by process id.

    Needs `adopt_orphans` or to be process 1. What can be neither seen in `/proc` nor killed is left after a while.
    """
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + _REAP_SECONDS
    while time.monotonic() < deadline:
        _kill_all_below()
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if child:
            statuses[child] = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.001)
    return statuses


def _kill_all_below() -> None:
    # To process 1, "every process" (-1) is every other one of its own process table.
    for process in [-1] if os.getpid() == 1 else _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _children() -> list[int]:
    if not LINUX:
        return []
    children = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # The program's name stands in brackets and may hold anything; the parent is the second word after it.
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                children.append(int(name))
    return children


def set_limits(*, cpu_seconds: int, memory_bytes: int, file_bytes: int, processes: int, open_files: int) -> None:
    """Lower the resource limits for good, or as far as those of this process reach."""
    # The soft limit ends the program with SIGXCPU, which says why; the hard one ends it if it ignores that.
    _lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    limits = [
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ]
    for name, limit in limits:
        _lower(name, limit, limit)


def _lower(name: int, soft: int, hard: int) -> None:
    allowed = resource.getrlimit(name)[1]
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed)
    resource.setrlimit(name, (soft, hard))


def counts_threads(user: int | None) -> bool:
    """Whether the kernel limits the processes and threads of a user (None: of this one), which it does not for root."""

    def refused() -> bool:
        give_up_privileges(user)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        try:
            child = os.fork()
        except BlockingIOError:
            return True
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return False

    return bool(in_fork(refused))


def count_processes(user: int | None) -> int:
    """Processes and threads that a user (None: this one) has in the whole system, also where they cannot be seen."""

    def bisect() -> int:
        give_up_privileges(user)
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        few, enough = 0, _MOST_PROCESSES if hard == resource.RLIM_INFINITY else min(hard, _MOST_PROCESSES)
        while enough - few > 1:
            limit = (few + enough) // 2
            resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
            try:
                child = os.fork()
            except BlockingIOError:
                few = limit
                continue
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            enough = limit
        return enough

    return int(in_fork(bisect) or 0)


def can_read(user: int | None, paths: Sequence[str]) -> bool:
    """Whether a user (None: this one without privileges) reads these files and folders."""

    def try_all() -> bool:
        give_up_privileges(user)
        return all(os.access(path, os.R_OK) for path in paths)

    return bool(in_fork(try_all))
