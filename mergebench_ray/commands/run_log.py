"""What libraries log while a command works on a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergebench_ray.config.storage_url import without_secrets


@contextmanager
def log_to(path: Path, storage: str | None) -> Iterator[None]:
    """Send what libraries log to a file while the block lasts, but for the storage's password."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_WithoutSecrets(storage))
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    # A line that finds no room is lost; the command says by itself that the disk is full.
    said, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        logging.raiseExceptions = said
        with suppress(OSError):
            handler.close()


class _WithoutSecrets(logging.Formatter):
    """Hides the password of a storage in messages and tracebacks."""

    def __init__(self, storage: str | None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._storage = storage

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines of a traceback."""
        return without_secrets(super().format(record), self._storage)
