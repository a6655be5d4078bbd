"""The child side of the sandbox: a launcher that forks once for each program, and what the fork does.

Run as a file by `python -I -S`; it imports nothing of the package. Forking a small process that has its imports behind
it takes a few milliseconds, a new interpreter for each program many times that. Jobs come as JSON lines on standard
input, one at a time, and results leave as JSON lines on standard output. The fork gives up its rights, runs the program
and reports on a pipe whether it reached its end.

On Linux (x86-64, AArch64) two kernel features take away what resource limits cannot: Landlock refuses every change to
the file system outside the current folder, and a system-call filter refuses new processes, signals and sockets. Both
need no privilege and cannot be undone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

# System calls refused with EPERM: fork vfork clone clone3 execve execveat · kill tkill tgkill rt_sigqueueinfo
# pidfd_send_signal · socket socketpair io_uring_setup · ptrace process_vm_writev · unshare setns mount.
_REFUSED = {
    "x86_64": (57, 58, 56, 435, 59, 322, 62, 200, 234, 129, 424, 41, 53, 425, 101, 311, 272, 308, 165),
    "aarch64": (220, 435, 221, 281, 129, 130, 131, 138, 424, 198, 199, 425, 117, 271, 97, 268, 40),
}
# And those that change a file's mode or owner, which Landlock leaves alone.
_REFUSED_ON_FILES = {"x86_64": (90, 91, 268, 452, 92, 93, 94, 260), "aarch64": (52, 53, 452, 54, 55)}
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446
# Landlock's rights that change something (write, remove, make), by the version of its interface.
_CHANGES = {1: 0x1FF2, 2: 0x3FF2, 3: 0x7FF2}
_EPERM = 1
_DIE_WITH_PARENT = 1
_REPORT_BYTES = 4096
_POLL_SECONDS = 0.001


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def set_limits(limits: dict[str, int]) -> None:
    """Lower the resource limits for good: CPU seconds, address space and file size in bytes, number of processes."""
    # The soft limit ends the program with SIGXCPU, which says why; the hard one ends it if it ignores that.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
    for name, limit in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (limit, limit))


def confine_writes(libc: ctypes.CDLL) -> bool:
    """Let this process change files below the current folder only; return whether the kernel agreed."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    changes = ctypes.c_uint64(_CHANGES[min(version, max(_CHANGES))])
    ruleset = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(changes), ctypes.sizeof(changes), 0)
    folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
    rule = _PathRule(changes.value, folder)
    added = ruleset >= 0 and libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0) == 0
    return bool(added and libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)


def refuse_system_calls(libc: ctypes.CDLL) -> bool:
    """Refuse new processes, signals and sockets; return whether the kernel agreed."""
    machine = os.uname().machine
    if machine not in _REFUSED:
        return False
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | _EPERM, 0x80000000
    lines = [
        (load, 0, 0, 4),
        (equal, 1, 0, _AUDIT_ARCHITECTURE[machine]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 0, 1, _X32_BIT),
        (give, 0, 0, refuse),
    ]
    for number in (*_REFUSED[machine], *_REFUSED_ON_FILES[machine]):
        lines += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    lines.append((give, 0, 0, allow))
    instructions = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    program = _Program(len(lines), ctypes.cast(instructions, ctypes.POINTER(_Instruction)))
    return bool(libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(program), 0, 0) == 0)


def isolate() -> list[str]:
    """Take every right away that the system lets us; return the names of what could not be taken."""
    if sys.platform != "linux":
        return ["file system", "processes and network"]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    missing = [] if confine_writes(libc) else ["file system"]
    return missing if refuse_system_calls(libc) else [*missing, "processes and network"]


def run(program: str, folder: str, limits: dict[str, Any], report: int, challenge: int) -> NoReturn:
    """The fork: give up rights, run the program, and answer the challenge if it reached its end."""
    os.setsid()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)  # nothing that a program prints counts, so nothing of it is kept
    for descriptor in set(range(3, limits["open_files"])) - {report, challenge}:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    set_limits(limits)
    os.write(report, (json.dumps(isolate()) + "\n").encode())
    try:
        exec(compile(program, "program", "exec"), {"__name__": "program"})
    except BaseException as error:
        os.write(report, f"failed {type(error).__name__}: {error}"[:300].encode(errors="replace"))
        os._exit(1)
    # The challenge is read only now: no copy of it was in memory while the program ran.
    os.write(report, b"passed " + os.read(challenge, 64))
    os._exit(0)


def launch(program: str, folder: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Run one program in a fork; whatever happens, its whole process group is dead afterwards."""
    report_read, report_write = os.pipe()
    challenge_read, challenge_write = os.pipe()
    child = os.fork()
    if child == 0:
        run(program, folder, limits, report_write, challenge_read)
    os.close(report_write)
    os.close(challenge_read)
    token = os.urandom(16).hex()  # made after the fork, which so has no copy of it
    os.write(challenge_write, token.encode())
    deadline = time.monotonic() + limits["wall_seconds"]
    report = _read_report(report_read, deadline)
    status = _wait(child, deadline)
    os.close(report_read)
    os.close(challenge_write)
    return {"report": report, "token": token, "status": status}


def _read_report(descriptor: int, deadline: float) -> str:
    """What the program's process reported until it closed the pipe, wrote too much, or its time was over."""
    report = b""
    while len(report) < _REPORT_BYTES:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(descriptor, _REPORT_BYTES) if ready else b""
        if not part:
            break
        report += part
    return report.decode(errors="replace")


def _wait(child: int, deadline: float) -> int | None:
    """Exit status as `subprocess` counts it (a signal is negative); None for a child that had to be killed."""
    status: int | None = None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(_POLL_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return status


def main() -> None:
    """Serve jobs until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(launch(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
