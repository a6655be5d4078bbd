"""The chat template of a model that is written: another one than its tokenizer's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mergebench_ray.checkpoints.json_files import read_json_object

_KEY = "chat_template"
_FILE, _OLDER = "chat_template.jinja", "chat_template.json"
_CONFIG = "tokenizer_config.json"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def set_chat_template(folder: Path, template: str) -> None:
    """Give a model's folder a chat template in the place of all others."""
    (folder / _OLDER).unlink(missing_ok=True)
    if (folder / _CONFIG).is_file():
        config = read_json_object(folder / _CONFIG)
        if config.pop(_KEY, None) is not None:
            (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / _FILE).write_text(template, encoding="utf-8")


def chat_template_of(folder: Path) -> str | None:
    """The chat template of a model's folder; None where it has none, or several by name.

    Raises:
        InputError: a file that is there but cannot be read.
    """
    if (folder / _FILE).is_file():
        return (folder / _FILE).read_text(encoding="utf-8", errors="replace")
    for name in (_OLDER, _CONFIG):
        if (folder / name).is_file():
            template = read_json_object(folder / name).get(_KEY)
            if isinstance(template, str):
                return template
    return None


def most_common_template(folders: Iterable[Path]) -> str | None:
    """The chat template that most models' folders have; of several the first one's."""
    found = [template.strip() for template in map(chat_template_of, folders) if template]
    return Counter(found).most_common(1)[0][0] if found else None
