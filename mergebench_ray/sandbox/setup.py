"""What this system lets the launcher take from its programs, and the taking.

Imported by the sandbox's own small interpreter: standard library and neighbours only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass, replace

from . import kernel, landlock, system_calls

ESSENTIAL = ("files (Landlock)", "processes and sockets (seccomp)")
"""What a program must be kept from; everything else is a second wall."""
_LEFT_OUT = {"pyarrow"}  # pandas works without it; its memory and threads do not survive limits and forks
_COUNT_SECONDS = 1.0  # between two counts of other processes
_NEW_PROCESSES = 256  # of others, that may begin before the next count


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What this system lets the launcher do to its programs.

    Attributes:
        folder: where they get their rooms.
        readable: folders of packages that they may import, and of what those need.
        user: whom programs and checks run as; None for this process's own user.
        read_any_file: whether they keep the right to read files of all users, within what Landlock allows.
        namespaces: whether the launcher has a process table, network and mounts of its own.
        threads: whether the kernel counts their threads, so that they may start some.
        lacking: what the system does not isolate.
    """

    folder: str
    readable: tuple[str, ...]
    user: int | None
    read_any_file: bool
    namespaces: bool
    threads: bool
    lacking: tuple[str, ...] = ()

    @property
    def shares_user(self) -> bool:
        """Whether the limit on processes counts others too, which are none of the sandbox's."""
        return self.threads and not self.namespaces and self.user in (None, kernel.NOBODY)


def find_setup(folder: str, modules: dict[str, str]) -> Setup:
    """Move into namespaces if the system permits them, import packages, and try in forks what else it grants."""
    user = kernel.unprivileged_user()
    namespaces = kernel.enter_namespaces(user)
    kernel.keep_memory_private()
    if not kernel.may_become(user):
        user = None
    if user is not None:
        os.chmod(folder, 0o711)
    readable = import_modules(modules)
    setup = Setup(
        folder=folder,
        readable=readable,
        user=user,
        read_any_file=user is not None and not kernel.can_read(user, (folder, *landlock.libraries(), *readable)),
        namespaces=namespaces,
        threads=kernel.counts_threads(user),
    )
    lacking = [] if namespaces else ["network and process table (namespaces)"]
    with contextlib.suppress(ValueError):  # a machine whose system calls are not listed
        system_calls.prepare(threads=setup.threads)
    found = kernel.in_fork(lambda: isolate(setup, None))
    lacking += ESSENTIAL if found is None else found
    if not setup.threads:
        lacking.append("threads, so that programs may start none (a user other than root)")
    return replace(setup, lacking=tuple(lacking))


def isolate(setup: Setup, room: str | None) -> list[str]:
    """Take from this process every right that the system lets us; return what it did not let us take.

    Args:
        setup: of the launcher.
        room: the one folder in which files may be made and changed; None for nowhere.
    """
    rules = landlock.Confinement(room, setup.readable)
    kernel.give_up_privileges(setup.user, read_any_file=setup.read_any_file)
    refused = (rules.enforce(), system_calls.refuse_system_calls(threads=setup.threads))
    return [name for name, done in zip(ESSENTIAL, refused) if not done]


class Others:
    """Processes of the programs' user that are none of ours, where they share its limit."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._counted_at = -_COUNT_SECONDS
        self._count = 0

    def count(self) -> int:
        """How many there may be while the next program runs."""
        if self._setup.shares_user and time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._count = kernel.count_processes(self._setup.user) + _NEW_PROCESSES
            self._counted_at = time.monotonic()
        return self._count


def import_modules(modules: dict[str, str]) -> tuple[str, ...]:
    """Import packages that lie outside the standard library, without opening their neighbours to the programs.

    Returns:
        the folders of the packages, and of others from beside them that they needed.
    """
    # Threads would forbid the forks their own: numerical libraries start one per core unless told otherwise.
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ.update(dict.fromkeys(threads, "1"))
    for name in _LEFT_OUT - modules.keys():
        sys.modules[name] = None  # type: ignore[assignment]
    for name, folder in modules.items():
        sys.path.append(folder)
        __import__(name)
        sys.path.pop()
    for name in threads:
        del os.environ[name]
    came = [name for name, module in sys.modules.items() if module is not None and "." not in name]
    beside = {os.path.join(folder, name) for folder in modules.values() for name in came}
    return tuple(sorted(filter(os.path.isdir, beside)))
