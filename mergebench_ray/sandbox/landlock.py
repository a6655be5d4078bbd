"""Which files a process in the sandbox may touch, and whom it may reach besides: the kernel's Landlock.

Imported by the sandbox's own small interpreter: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_ASK_VERSION, _PATH_RULE, _UNLOGGED = 1, 1, 1
# All rights on files, by the version of the interface that brought the last of them. Reading a file and listing a
# folder are two.
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
_READ_FILE, _READ_FOLDER = 0x4, 0x8
_PORTS, _SOCKETS_AND_SIGNALS = 0x3, 0x3  # binding and connecting; abstract sockets and signals
_READABLE_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_READABLE_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def libraries() -> tuple[str, ...]:
    """Folders of Python's own modules."""
    return os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib")


class Confinement:
    """Rules for this process. Made while it may still open the folders, put in force later.

    Args:
        writable: the one folder in which files may be made and changed; None for nowhere.
        readable: folders to read, besides that one and the libraries of Python and of the system.
    """

    def __init__(self, writable: str | None, readable: Sequence[str] = ()) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._version = self._libc.syscall(_CREATE, None, 0, _ASK_VERSION) if sys.platform == "linux" else 0
        self._ruleset = -1
        if self._version < 1:
            return
        every_right = _FILE_RIGHTS[max(version for version in _FILE_RIGHTS if version <= self._version)]
        handled = _Ruleset(every_right, _PORTS, _SOCKETS_AND_SIGNALS)
        size = 24 if self._version >= 6 else 16 if self._version >= 4 else 8  # as much as the kernel knows
        self._ruleset = self._libc.syscall(_CREATE, ctypes.byref(handled), size, 0)
        if self._ruleset < 0:
            return
        self._allow(_READABLE_DEVICES, _READ_FILE)
        self._allow((*_READABLE_FOLDERS, *libraries(), *readable), _READ_FILE | _READ_FOLDER)
        if writable is not None:
            self._allow((writable,), every_right)

    def enforce(self) -> bool:
        """Give up for good what the rules do not allow; return whether the kernel agreed."""
        if self._ruleset < 0:
            return False
        flags = _UNLOGGED if self._version >= 7 else 0  # or a program could fill the system's log
        enforced = self._libc.syscall(_RESTRICT, self._ruleset, flags) == 0
        os.close(self._ruleset)
        return bool(enforced)

    def _allow(self, paths: Sequence[str], rights: int) -> None:
        for path in filter(os.path.exists, paths):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            self._libc.syscall(_ADD_RULE, self._ruleset, _PATH_RULE, ctypes.byref(_PathRule(rights, descriptor)), 0)
            os.close(descriptor)
