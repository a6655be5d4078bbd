"""The one error that means: the input was wrong, nothing was started, here is what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Input that a user can mend.

    The message is a single line that says what is wrong, where (file, key), and what to do about it. The command
    line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
