"""Names as they are, wherever they are printed: on a terminal, in Markdown, LaTeX and spreadsheets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.text import Text
from tabulate import tabulate

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_CONTROL_ON_TERMINAL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]+")  # lines may break
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
# An underscore inside a word is not emphasis.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_])")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{"<": "\\textless{}", ">": "\\textgreater{}", "±": "$\\pm$", "–": "--"},
}


def terminal_text(text: str) -> Text:
    """Text for a terminal, in which square brackets and control characters mean nothing."""
    return Text(_CONTROL_ON_TERMINAL.sub(" ", text))


def line_text(text: str) -> str:
    """Text for one line, or one cell of a table that is separated by tabs."""
    return _CONTROL.sub(" ", text)


def markdown_text(text: str) -> str:
    """Text for a Markdown table's cell."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", _CONTROL.sub(" ", text))


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    """A Markdown table of cells that are Markdown already, with columns that stand under each other as text too.

    Args:
        header: a cell for each column.
        lines: cells of the other lines.
        left: of each column, whether it is aligned to the left; the others are to the right.
    """
    alignment = tuple("left" if one else "right" for one in left) if lines else None
    return str(tabulate(lines, list(header), tablefmt="pipe", disable_numparse=True, colalign=alignment))


def latex_text(text: str) -> str:
    """Text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in _CONTROL.sub(" ", text))


def csv_text(text: str) -> str:
    """Text for a CSV cell that no spreadsheet takes for a formula: with an apostrophe before what begins one."""
    return ("'" if text.startswith(_FORMULA) else "") + _CONTROL.sub(" ", text)
