"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mergebench_ray.errors import InputError

Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Value as YAML; may be given several times.")
]
LocalData = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="ID=PATH", help="Read a hub's data set (ID or ID:CONFIG) from a file or folder."),
]
MethodsFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder whose *.py define methods of your own; they run as your own code does."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use (as in ray.init); default: RAY_ADDRESS, else a local one.")
]


def parse_pairs(texts: list[str] | None, option: str, form: str) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping.

    Raises:
        InputError: naming the option, and the `form` it has.
    """
    from mergebench_ray.config.storage_url import hide_passwords_in

    pairs: dict[str, str] = {}
    for text in texts or []:
        key, separator, value = text.partition("=")
        if not (key and separator and value):
            raise InputError(f"{option} {hide_passwords_in(repr(text)):.120}: write {form}")
        if key in pairs:
            raise InputError(f"{option} {key!r:.120} is given twice: give it once")
        pairs[key] = value
    return pairs


def parse_names(text: str | None, option: str) -> list[str] | None:
    """Names that are separated by commas; None where the option was not given.

    Raises:
        InputError: an empty name, or one that is given twice.
    """
    if text is None:
        return None
    names = text.split(",")
    if not all(names):
        raise InputError(f"{option} {text!r:.120}: an empty name; write A,B")
    if twice := next((name for index, name in enumerate(names) if name in names[:index]), None):
        raise InputError(f"{option} {text!r:.120}: {twice!r:.80} is given twice")
    return names


def parse_settings(texts: list[str] | None, option: str = "--set", form: str = "KEY=VALUE") -> dict[str, Any]:
    """``KEY=VALUE`` texts with values read as YAML.

    Raises:
        InputError: naming the setting.
    """
    from mergebench_ray.config.sweep import check_settings
    from mergebench_ray.config.yaml_files import parse_setting

    pairs = parse_pairs(texts, option, form)
    check_settings(pairs)
    return {key: parse_setting(value, f"{option} {key}={value}") for key, value in pairs.items()}
