"""Addresses of databases, shown and stored without the passwords in them."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

HIDDEN = "***"
# Up to the last @: whoever forgot to write one in a password as %40 should not see it printed.
_USER = re.compile(r"(?P<before>^[^:/?#]+://[^:/@]*:)(?P<secret>.*)(?P<after>@)", re.DOTALL)
_INSIDE = re.compile(r"(?P<before>://[^\s:/@]*:|(?:pass|pwd)\w*(?:=|%3D))(?:[^\s'\"]*(?=@)|[^\s&@'\"]+)", re.IGNORECASE)
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "key", "credential")


def hide_password(url: str) -> str:
    """The address with three stars for the password, and for options that are called as if they held one."""
    return _taken_apart(url)[0]


def secrets_of(url: str) -> list[str]:
    """What `hide_password` hides, as it is written and as it is sent."""
    secrets = _taken_apart(url)[1]
    return sorted({*secrets, *map(unquote_plus, secrets)} - {"", HIDDEN}, key=len, reverse=True)


def without_secrets(text: str, url: str | None) -> str:
    """A text, such as another program's message, in which the secrets of an address are hidden."""
    for secret in secrets_of(url) if url else []:
        text = text.replace(secret, HIDDEN)
    return text


def hide_passwords_in(text: str) -> str:
    """A text that may hold addresses, such as the value in a message, with three stars for what may be a password."""
    return _INSIDE.sub(rf"\g<before>{HIDDEN}", text)


def _taken_apart(url: str) -> tuple[str, list[str]]:
    address, mark, options = url.partition("?")
    secrets = []
    if found := _USER.search(address):
        secrets.append(found["secret"])
        address = _USER.sub(rf"\g<before>{HIDDEN}\g<after>", address)
    kept = []
    for option in options.split("&"):
        name, equals, value = option.partition("=")
        if equals and any(word in unquote_plus(option).lower() for word in _SECRET_WORDS):
            secrets.append(value)
            option = f"{name}={HIDDEN}"
        kept.append(option)
    return address + mark + "&".join(kept), secrets
