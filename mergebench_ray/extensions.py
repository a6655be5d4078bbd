"""What registers itself when it is imported: a package's own modules, and those of other packages by entry point."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from importlib.metadata import entry_points

from mergebench_ray.errors import one_line

_log = logging.getLogger(__name__)


def import_extensions(package: str, group: str) -> None:
    """Import all modules of a package, then what other packages offer; of those, what fails is left out, and said so.

    Args:
        package: its dotted name.
        group: of entry points, such as ``mergebench_ray.methods``; its last part is what they bring.
    """
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    kind = group.rpartition(".")[2].removesuffix("s")
    for entry in entry_points(group=group):
        try:
            entry.load()
        except Exception as error:  # whatever a package's import may raise
            _log.warning("%s %s (%s) is left out: %s", kind, entry.name, entry.value, one_line(error))
