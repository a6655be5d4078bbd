"""Files of a user's own code: imported by what they hold, and taken along to processes that do not have them."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import ExecutionLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

_PREFIX = "mergebench_ray_outside_"

_lock = threading.RLock()
_known: dict[str, OutsideCode] = {}


@dataclass(frozen=True)
class OutsideCode:
    """A file of code, as it was when it was read; where it is unpickled, it is imported, whether it is there or not.

    Attributes:
        path: where it was.
        source: what it held.
    """

    path: str
    source: str

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def module(self) -> str:
        """Name of its module: another one for other content, so that whatever is kept by that name is kept apart."""
        stem = re.sub(r"\W", "_", self.path.rpartition("/")[2].removesuffix(".py"))
        return f"{_PREFIX}{stem}_{self.digest[:32]}"

    def imported(self) -> OutsideCode:
        """The same, once it is imported in this process.

        Raises:
            Exception: whatever the code raises.
        """
        with _lock:
            if self.module not in sys.modules:
                _known[self.module] = self
                spec = spec_from_loader(self.module, _Loader(self), origin=self.path)
                assert spec is not None
                module = module_from_spec(spec)
                sys.modules[self.module] = module
                try:
                    _Loader(self).exec_module(module)
                except BaseException:
                    del sys.modules[self.module], _known[self.module]
                    raise
        return self

    def __reduce__(self) -> tuple[Callable[..., OutsideCode], tuple[str, str]]:
        return _imported, (self.path, self.source)


def _imported(path: str, source: str) -> OutsideCode:
    return OutsideCode(path, source).imported()


class _Loader(ExecutionLoader):
    """Imports a text; tracebacks show its lines where there is no file, too."""

    def __init__(self, code: OutsideCode) -> None:
        self._code = code

    def get_source(self, fullname: str) -> str:
        return self._code.source

    def get_filename(self, fullname: str) -> str:
        return self._code.path


def is_outside(module: str) -> bool:
    """Whether a module is one of these files, by its name."""
    return module.startswith(_PREFIX)


def code_of(thing: Any) -> OutsideCode | None:
    """The file that a function or class is from; None of whatever any process can import by itself."""
    return _known.get(getattr(thing, "__module__", ""))


def taken_along(thing: Any, reduced: Any) -> Any:
    """What `__reduce_ex__` gives, with the file that a function or class in it is from, if it is from one."""
    code = code_of(thing)
    if code is None or isinstance(reduced, str):
        return reduced
    # What stands first is unpickled first, before the function or class is asked for.
    make, arguments, *rest = reduced
    return (_made, (code, make, arguments), *rest)


def _made(_code: OutsideCode, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return make(*arguments)
