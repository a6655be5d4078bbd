"""The system calls that a program in the sandbox may make; the kernel refuses all others.

A list of what is allowed, not of what is known to be dangerous: what a kernel will learn to do is refused before anyone
has heard of it. Imported by the sandbox's own small interpreter: standard library only.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# By name: (number on x86-64, number on AArch64).
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # descriptors that are open; no `fallocate`, which reserves disk space beyond every limit
    **{"read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67)},
    **{"pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287)},
    **{"lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None)},
    **{"dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "eventfd": (284, None), "eventfd2": (290, 19)},
    **{"sendfile": (40, 71), "copy_file_range": (326, 285), "flock": (73, 32), "fadvise64": (221, 223)},
    **{"ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83)},
    **{"poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72)},
    **{"epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None)},
    **{"epoll_pwait": (281, 22), "epoll_pwait2": (441, 441)},
    # files and folders, which Landlock guards; not their modes, owners, times and attributes, which it leaves alone
    **{"open": (2, None), "openat": (257, 56), "creat": (85, None), "truncate": (76, 45), "umask": (95, 166)},
    **{"stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291)},
    **{"access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "statfs": (137, 43)},
    **{"fstatfs": (138, 44), "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17)},
    **{"chdir": (80, 49), "fchdir": (81, 50), "getdents": (78, None), "getdents64": (217, 61)},
    **{"mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35)},
    **{"rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37)},
    **{"symlink": (88, None), "symlinkat": (266, 36)},
    # memory
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233)},
    **{"msync": (26, 227), "mincore": (27, 232), "brk": (12, 214)},
    # signals that arrive
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136)},
    **{"rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "pause": (34, None)},
    **{"restart_syscall": (219, 128)},
    # its own threads and its end
    **{"futex": (202, 98), "futex_waitv": (449, 449), "set_robust_list": (273, 99), "set_tid_address": (218, 96)},
    **{"rseq": (334, 293), "membarrier": (324, 283), "sched_yield": (24, 124), "arch_prctl": (158, None)},
    **{"exit": (60, 93), "exit_group": (231, 94), "wait4": (61, 260), "waitid": (247, 95)},
    # who and when it is, and on what machine
    **{"gettid": (186, 178), "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175)},
    **{"getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getresuid": (118, 148)},
    **{"getresgid": (120, 150), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156)},
    **{"time": (201, None), "gettimeofday": (96, 169), "times": (100, 153), "clock_gettime": (228, 113)},
    **{"clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "alarm": (37, None)},
    **{"getitimer": (36, 102), "setitimer": (38, 103), "getrusage": (98, 165), "getrlimit": (97, 163)},
    **{"getpriority": (140, 141), "sched_getaffinity": (204, 123), "sched_getscheduler": (145, 120)},
    **{"sched_getparam": (143, 121), "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126)},
    **{"getcpu": (309, 168), "uname": (63, 160), "sysinfo": (99, 179), "getrandom": (318, 278)},
}
# Allowed for some arguments only.
_FCNTL, _IOCTL, _PRCTL, _PRLIMIT, _CLONE = (72, 25), (16, 29), (157, 167), (302, 261), (56, 220)
_KILL, _TGKILL = (62, 129), (234, 131)

# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW,
# F_DUPFD_CLOEXEC: none of those that name a process or a signal (F_SETOWN, F_SETSIG, F_SETLEASE, F_NOTIFY).
_FCNTL_COMMANDS = (0, 1, 2, 3, 5, 6, 7, 36, 37, 38, 1030)
_SET_FLAGS, _ASYNCHRONOUS = 4, 0x2000  # F_SETFL, O_ASYNC: the kernel would send a signal when data comes
# TCGETS (by its two numbers), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL_COMMANDS = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_PRCTL_OPTIONS = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and of memory
# What glibc and musl ask for a thread; a process is another set of flags.
_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)

_MACHINES = ("x86_64", "aarch64")
_AUDIT_ARCHITECTURE = (0xC000003E, 0xC00000B7)
_EPERM, _ENOSYS = 1, 38
# C libraries try calls as young as these and go on with older ones where the kernel does not know them.
_YOUNG = 424
_SET_SECCOMP, _SECCOMP_FILTER = 22, 2

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _UNKNOWN, _KILL_PROCESS = 0x7FFF0000, 0x00050000 | _EPERM, 0x00050000 | _ENOSYS, 0x80000000
_OWN_PROCESS = 0x7FFFFFF0  # stands for the process that installs the filter; Linux numbers none as high
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets of what a filter sees

_Line = tuple[int, int, int, int]


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def refuse_system_calls(*, threads: bool) -> bool:
    """Install the filter on this process for good; return whether the kernel agreed. No new privileges may be wanted.

    Args:
        threads: whether the process may start threads of its own.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _MACHINES:
        return False
    instructions = prepare(threads=threads)
    for instruction in instructions:
        if instruction.operand == _OWN_PROCESS:
            instruction.operand = os.getpid()
    program = _Program(len(instructions), ctypes.cast(instructions, ctypes.POINTER(_Instruction)))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(program), 0, 0) == 0)


@functools.cache
def prepare(*, threads: bool) -> ctypes.Array[_Instruction]:
    """The filter, which takes a while to write down: a process that forks many does it for all of them."""
    lines = _lines(_MACHINES.index(os.uname().machine), threads)
    return (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))


def _lines(machine: int, threads: bool) -> list[_Line]:
    own = (_OWN_PROCESS,)
    rules = {
        _FCNTL: [*_only(1, _FCNTL_COMMANDS, otherwise=()), *_flags_without_signals()],
        _IOCTL: _only(1, _IOCTL_COMMANDS),
        _PRCTL: _only(0, _PRCTL_OPTIONS),
        _PRLIMIT: _reading_own_limits(),
        _CLONE: _only(0, _THREAD_FLAGS if threads else ()),
        _KILL: _only(0, own),
        _TGKILL: _only(0, own),
    }
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _AUDIT_ARCHITECTURE[machine]), (_GIVE, 0, 0, _KILL_PROCESS)]
    lines.append((_LOAD, 0, 0, _NUMBER))
    for numbers, rule in rules.items():
        lines += [(_EQUAL, 0, len(rule), numbers[machine]), *rule]
    for names in _ALLOWED.values():
        number = names[machine]
        if number is not None:
            lines += [(_EQUAL, 0, 1, number), (_GIVE, 0, 0, _ALLOW)]
    # The numbers of the x32 interface are larger still.
    return [*lines, (_AT_LEAST, 0, 1, _YOUNG), (_GIVE, 0, 0, _UNKNOWN), (_GIVE, 0, 0, _REFUSE)]


def _only(
    argument: int, allowed: tuple[int, ...], otherwise: tuple[_Line, ...] = ((_GIVE, 0, 0, _REFUSE),)
) -> list[_Line]:
    """Allow some values of an argument of 32 bits."""
    lines: list[_Line] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    for value in allowed:
        lines += [(_EQUAL, 0, 1, value), (_GIVE, 0, 0, _ALLOW)]
    return [*lines, *otherwise]


def _flags_without_signals() -> list[_Line]:
    """Of `fcntl`, with its command loaded: setting flags that ask for no signal."""
    return [
        (_EQUAL, 0, 3, _SET_FLAGS),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * 2),
        (_ANY_BIT, 1, 0, _ASYNCHRONOUS),
        (_GIVE, 0, 0, _ALLOW),
        (_GIVE, 0, 0, _REFUSE),
    ]


def _reading_own_limits() -> list[_Line]:
    """Of `prlimit64`: no other process, and no new limit, which is a pointer of 64 bits."""
    return [
        (_LOAD, 0, 0, _ARGUMENTS),
        (_EQUAL, 0, 5, 0),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * 2),
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * 2 + 4),
        (_EQUAL, 0, 1, 0),
        (_GIVE, 0, 0, _ALLOW),
        (_GIVE, 0, 0, _REFUSE),
    ]
