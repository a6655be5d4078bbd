"""The one error that means: the input was wrong, nothing was started, here is what to do."""

from __future__ import annotations

_MAX_CHARACTERS = 1500


class InputError(ValueError):
    """Input that a user can mend.

    The message is a single line that says what is wrong, where (file, key), and what to do about it. The command
    line prints it without a traceback and exits with status 2. What a message quotes may be anything: characters that a
    terminal would obey are escaped, and the middle of a very long one is left out.
    """

    def __init__(self, message: str) -> None:
        line = printable(" ".join(str(message).split()))
        if len(line) > _MAX_CHARACTERS:
            line = f"{line[: _MAX_CHARACTERS // 2]} … {line[-_MAX_CHARACTERS // 2 :]}"
        super().__init__(line)


def printable(text: str) -> str:
    """Text with everything escaped that a terminal or a page would obey instead of showing it, line breaks too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
