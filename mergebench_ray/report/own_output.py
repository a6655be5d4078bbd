"""What a report may write over: nothing but what an earlier report wrote, which says so itself.

A table also holds a digest of itself, so that one which was edited is known: in a comment at its end, and in CSV, which
has none, in a last column.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergebench_ray.errors import InputError
from mergebench_ray.files import check_replaceable_file, open_regular, whole_file
from mergebench_ray.runs.run_folder import RunFolder

HTML_MARK = '<meta name="generator" content="mergebench-ray report">'
LATEX_MARK = "% mergebench-ray report"
CSV_MARK = "place,method,candidate,run,split,normalised_average,normalised_standard_error"
NOT_COMPARABLE_MARK = "> "  # before a Markdown table, where it says that runs cannot be compared
_OLD_HTML_MARK = '<link rel="icon" href="data:,">\n<style>\n:root { color-scheme: light;'
# What is in a page, and what a table begins with.
_MARKS = {
    "out": re.compile("|".join(map(re.escape, (HTML_MARK, _OLD_HTML_MARK))).encode()),
    "csv": re.compile(re.escape(CSV_MARK).encode()),
    "markdown": re.compile(rb"(> not comparable.*\n\n)?\| *place *\| method"),
    "latex": re.compile(re.escape(LATEX_MARK).encode()),
}
_DIGEST_COLUMN = b",report_digest"
_COMMENTS = {"markdown": (b"\n<!-- mergebench-ray report ", b" -->\n"), "latex": (b"% mergebench-ray report ", b"\n")}


def check_outputs(paths: Mapping[str, Path], runs: Sequence[Path]) -> None:
    """Find out whether all files of a report can be written, before the first is.

    Args:
        paths: option without its dashes -> file.
        runs: folders of the runs that are reported on.

    Raises:
        InputError: two are the same file, one is a file of a run, is there and no earlier report of its kind, or cannot
            be written.
    """
    seen: dict[Path, str] = {}
    for option, path in paths.items():
        check_replaceable_file(path, f"--{option}")
        target = path.resolve()
        if target in seen:
            raise InputError(f"{path}: both --{seen[target]} and --{option} name it; name two files")
        seen[target] = option
        for run in runs:
            if RunFolder(run).holds(target):
                raise InputError(f"{path} is for the run {run} itself: choose another --{option}")
        if target.exists() and not _is_own(target, option):
            raise InputError(
                f"{path} exists, and no `report --{option}` wrote it as it is (another file, edited, or of an "
                f"earlier version): choose another --{option} or remove it"
            )


def write_output(path: Path, text: str, option: str) -> Path:
    """Write a file of a report whole, where a link leads to.

    Args:
        path: the file.
        text: what it says, without a digest.
        option: without its dashes.

    Raises:
        InputError: if it cannot be written.
    """
    with whole_file(path.resolve()) as temporary:
        temporary.write_bytes(_sealed(text.encode("utf-8", "backslashreplace"), option))
    return path


def _is_own(path: Path, option: str) -> bool:
    with open_regular(path) as stream:
        beginning = stream.read(1 << 16)
        if option == "out":
            return _MARKS[option].search(beginning) is not None
        if not _MARKS[option].match(beginning):
            return False
        content = beginning + stream.read()
    return content == _sealed(_unsealed(content, option), option)


def _sealed(content: bytes, option: str) -> bytes:
    """A table with its digest in it; a page as it is."""
    digest = hashlib.sha256(content).hexdigest()[:16].encode()
    if option == "csv":
        heading, *lines = content.splitlines()
        return b"".join([heading, _DIGEST_COLUMN, b"\n", *(line + b"," + digest + b"\n" for line in lines)])
    before, after = _COMMENTS.get(option, (b"", b""))
    return content + before + digest + after if before else content


def _unsealed(content: bytes, option: str) -> bytes:
    """What `_sealed` made this of, if it did."""
    if option != "csv":
        return content.rpartition(_COMMENTS[option][0])[0]
    heading, *lines = content.splitlines()
    return b"\n".join([heading.removesuffix(_DIGEST_COLUMN), *(line.rpartition(b",")[0] for line in lines), b""])
