"""Commands in the documentation are commands: each is known, with its options and as many arguments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from mergebench_ray import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), *ROOT.glob("cluster/*.md")]
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:\w+=\S+ )*mergebench-ray (.*)$", re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Arguments of every command in the code blocks of a page; those that list alternatives are left out."""
    blocks = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))
    return [shlex.split(line, comments=True) for line in COMMAND.findall(blocks) if " | " not in line]


def parse(command: Any, arguments: list[str]) -> None:
    """Read arguments as the command line does, without running anything; raises what it would."""
    if subcommands := getattr(command, "commands", {}):
        if arguments[0] in subcommands:
            parse(subcommands[arguments[0]], arguments[1:])
        else:
            assert arguments[0] in {option for one in command.params for option in one.opts} | {"--help", "-h"}
    else:
        command.make_context(command.name, arguments)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    group = typer.main.get_command(cli.app)
    for arguments in commands(page):
        parse(group, arguments)
