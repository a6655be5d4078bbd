"""The folder that an engine started from, and reads again whenever the base comes back."""

from __future__ import annotations

from pathlib import Path

from mergebench_ray.checkpoints.file_state import FileState
from mergebench_ray.errors import InputError
from mergebench_ray.files import open_regular

_ENDINGS = (".safetensors", ".safetensors.index.json")


class ModelFolder:
    """Files of a model, as they were when this was made.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._states()

    def require_unchanged(self) -> None:
        """Refuse files that are not what they were.

        Raises:
            InputError: naming the first.
        """
        now = self._states()
        for file in sorted(now.keys() | self._seen.keys()):
            if file not in now:
                difference: str | None = "was removed"
            elif file not in self._seen:
                difference = "was added"
            else:
                difference = now[file].differs_from(self._seen[file])
            if difference is not None:
                raise InputError(f"{file}: {difference} while an engine used it; leave it alone and start again")

    def _states(self) -> dict[Path, FileState]:
        states = {}
        for file in sorted(self._path.iterdir()):
            if file.name == "config.json" or (file.name.endswith(_ENDINGS) and not file.name.startswith(".")):
                with open_regular(file) as stream:
                    states[file] = FileState.of(stream.fileno())
        return states
