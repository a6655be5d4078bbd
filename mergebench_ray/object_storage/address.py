"""Addresses in object storage, such as s3://bucket/models/math."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from mergebench_ray.errors import InputError, nearest, without_credentials

SCHEMES = {"s3": "S3", "gs": "Google Cloud Storage"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*):/")


@dataclass(frozen=True, order=True)
class Address:
    """A place in a bucket; prints as it is written.

    Attributes:
        scheme: a key of `SCHEMES`.
        bucket: name of the bucket.
        key: what is in it, without a slash at either end.
    """

    scheme: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            InputError: it is not one, or leads to another place than it seems to. What may be a password is not shown.
        """
        scheme, _, rest = text.partition("://")
        if scheme not in SCHEMES:
            beginnings = " or ".join(f"{known}://" for known in SCHEMES)
            raise InputError(f"address {text[:3]!r}...: begin it with {beginnings}, then BUCKET/FOLDER")
        bucket, _, key = rest.partition("/")
        if "@" in bucket or ":" in bucket:
            raise InputError(
                f"address {scheme}://***: keys and passwords come from the environment (docs/checkpoints.md), never "
                f"from an address; write {scheme}://BUCKET/FOLDER"
            )
        if any(letter in rest for letter in "?#\\"):
            # Options may be a signature.
            raise InputError(f"address {scheme}://...: takes no options and no '?', '#' or backslash")
        if not _BUCKET.fullmatch(bucket):
            raise InputError(f"address {text!r}: {bucket!r} cannot be a bucket's name; write {scheme}://BUCKET/FOLDER")
        key = key.removesuffix("/")
        parts = key.split("/")
        if not key or any(part in ("", ".", "..") or part != part.strip() for part in parts) or not key.isprintable():
            raise InputError(f"address {text!r}: write {scheme}://BUCKET/FOLDER; no part is empty, '.' or '..'")
        return cls(scheme, bucket, key)

    def __truediv__(self, name: str) -> Address:
        return Address(self.scheme, self.bucket, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def file_name(self) -> str:
        """What a file can be called after it: keys may be longer than names of files, and of other letters."""
        return _NOT_IN_NAMES.sub("-", self.name)[:60]

    @property
    def parent(self) -> Address:
        """The folder that it is in; with an empty key where that is the bucket."""
        return Address(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"


def scheme_of(text: str) -> str | None:
    """What stands before `:/` at the start of a text, known or not; None for a path or name."""
    found = _SCHEME.match(text)
    return found[1] if found else None


def is_address(text: str) -> bool:
    """Whether a text means a place in object storage, right or wrong."""
    return scheme_of(text) in SCHEMES


def output_place(out: PurePath | str) -> Path | Address:
    """Where an output goes that may go to object storage.

    Raises:
        InputError: an address that is none, or of another kind.
    """
    scheme, text = scheme_of(str(out)), str(out)
    if scheme is None:
        return Path(out)
    if scheme not in SCHEMES:
        shown = without_credentials(text)
        raise InputError(f"output {shown}: cannot be written to {scheme}://; {nearest(scheme, SCHEMES)}")
    # Who made a path of it has lost a slash.
    return Address.parse(text if "://" in text else text.replace(":/", "://", 1))
