"""Objects of a bucket: listed, read by ranges of bytes, written, removed; what fails is one line.

Keys and endpoints come from the environment, as the stores' own tools take them, and are shown nowhere.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mergebench_ray.errors import InputError
from mergebench_ray.install_hints import install_command
from mergebench_ray.object_storage.address import SCHEMES, Address

if TYPE_CHECKING:
    from obstore.store import GCSStore, RetryConfig, S3Store

_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_MOST_PARTS = 9000
"""Of an upload; stores take 10,000."""
_REQUEST_SECONDS = 120
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
_ENVIRONMENT = ("AWS_", "GOOGLE_", "GCS_")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"), "gs": ("GOOGLE_BASE_URL",)}
_OWN_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_STATUS = re.compile(r"status code: (\d{3}[\w ']*)")
_NETWORK = re.compile(r"error sending request|connect|dns error|timed? ?out|connection", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s]*@")
_REGION = re.compile(r"[A-Za-z0-9-]*")
_MAX_REASON = 200


@dataclass(frozen=True)
class RemoteObject:
    """An object as it was seen.

    Attributes:
        address: where it is.
        size: in bytes.
        etag: changes with its content.
    """

    address: Address
    size: int
    etag: str


def list_folder(folder: Address) -> tuple[dict[str, RemoteObject], set[str]]:
    """What lies directly in a folder.

    Returns:
        objects by name, and the names of folders in it. Nothing is no error: a folder is what its objects are called.

    Raises:
        InputError: no such bucket, no permission, no network.
    """
    import obstore

    prefix = f"{folder.key}/" if folder.key else ""
    with explained(folder, "listed"):
        found = obstore.list_with_delimiter(_store(folder), prefix)
    objects = {}
    for meta in found["objects"]:
        name = meta["path"].removeprefix(prefix)
        # An object that stands for the folder itself, as consoles make one, is called what the folder is.
        if name and "/" not in name and meta["path"] != folder.key:
            objects[name] = _seen(Address(folder.scheme, folder.bucket, meta["path"]), meta)
    folders = {path.rstrip("/").removeprefix(prefix) for path in found["common_prefixes"]}
    return objects, folders - {""}


def look_at(address: Address) -> RemoteObject | None:
    """An object; None if there is none.

    Raises:
        InputError: no permission, no network.
    """
    import obstore

    with explained(address, "read"):
        try:
            return _seen(address, obstore.head(_store(address), address.key))
        except FileNotFoundError:
            return None


def read_range(one: RemoteObject, start: int, stop: int) -> memoryview:
    """Bytes [start, stop) of an object, if it is still the one that was seen.

    Raises:
        InputError: it was replaced or removed meanwhile, or cannot be read.
    """
    import obstore

    if start == stop:
        return memoryview(b"")
    with explained(one.address, "read"):
        found = obstore.get(
            _store(one.address), one.address.key, options={"if_match": one.etag, "range": (start, stop)}
        )
        content = memoryview(found.bytes())
    if len(content) != stop - start or found.meta["size"] != one.size:
        raise InputError(f"{one.address}: {_CHANGED}")
    return content


def create(address: Address, content: bytes) -> None:
    """Make an object where there is none.

    Raises:
        InputError: there is one, or it cannot be written.
    """
    import obstore

    with explained(address, "written"):
        obstore.put(_store(address), address.key, content, mode="create", use_multipart=False)


def upload(file: Path, address: Address, between: Callable[[int], None]) -> None:
    """Write an object with the content of a file, a few parts of it in memory at a time.

    Args:
        file: the file.
        address: where to.
        between: told of the bytes that are sent next; what it raises ends the upload, and there is no object.

    Raises:
        InputError: it cannot be written.
        OSError: the file cannot be read.
    """
    import obstore

    size = file.stat().st_size
    part = max(_PART_BYTES, -(-size // _MOST_PARTS))

    def parts() -> Iterator[bytes]:
        with file.open("rb") as stream:
            while block := stream.read(part):
                between(len(block))
                yield block

    content = parts() if size > part else b"".join(parts())
    with explained(address, "written"):
        obstore.put(
            _store(address),
            address.key,
            content,
            use_multipart=size > part,
            chunk_size=part,
            max_concurrency=_PARTS_AT_ONCE,
        )


def remove(address: Address) -> None:
    """Remove an object; one that is not there is no error.

    Raises:
        InputError: it cannot be removed.
    """
    import obstore

    with explained(address, "removed"):
        try:
            obstore.delete(_store(address), address.key)
        except FileNotFoundError:
            return


_CHANGED = "was replaced while it was in use; leave it alone and start again"


@contextmanager
def explained(address: Address, done: str) -> Iterator[None]:
    """Say in one line why the store refuses.

    Args:
        address: what for.
        done: what cannot be done with it.

    Raises:
        InputError: with what to do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of kinds that have no common one
        raise InputError(f"{address}: {_problem(address, done, error)}") from None


def _problem(address: Address, done: str, error: Exception) -> str:
    from obstore import exceptions

    text, code = str(error), _code(error)
    if isinstance(error, exceptions.PreconditionError):
        return _CHANGED
    if isinstance(error, exceptions.AlreadyExistsError):
        return "exists by now: choose another name or remove it"
    if code == "NoSuchBucket" or "bucket does not exist" in text:
        return f"there is no bucket {address.bucket!r}; check its name, and the endpoint if there is one"
    if isinstance(error, FileNotFoundError):
        return "there is no such object any more; leave it alone and start again"
    if "169.254.169.254" in text or "metadata.google" in text:
        return f"there are no {_whose(address)}; set them in the environment (docs/checkpoints.md)"
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or code in _REFUSED:
        why = f" ({code})" if code else ""
        return f"no permission: it cannot be {done} with the {_whose(address)} that are set{why}; check their rights"
    if "redirect" in text or code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return f"the bucket {address.bucket!r} is in another region; set AWS_REGION to that"
    # How long was tried is told of answers, too, so that what they say comes first.
    status = found[1].strip() if (found := _STATUS.search(text)) else None
    if code is None and status is None and _NETWORK.search(text):
        return f"{SCHEMES[address.scheme]} is out of reach; check the network, and the endpoint if there is one"
    return f"cannot be {done} ({code or status or _without_secrets(text)}); check the store"


def _whose(address: Address) -> str:
    return "credentials of AWS" if address.scheme == "s3" else "credentials of Google Cloud"


def _code(error: Exception) -> str | None:
    """What S3 calls the error."""
    found = _CODE.search(str(error))
    return found[1] if found else None


def _without_secrets(text: str) -> str:
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    text = _USER.sub("***@", text)
    return " ".join(text.split())[:_MAX_REASON]


def _seen(address: Address, meta: Mapping[str, Any]) -> RemoteObject:
    if not meta["e_tag"]:
        raise InputError(f"{address}: the store gives no ETag, so a change would not be noticed; copy it to a disk")
    return RemoteObject(address, int(meta["size"]), str(meta["e_tag"]))


def _store(address: Address) -> S3Store | GCSStore:
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_ENVIRONMENT)))
    with explained(address, "opened"):
        return _opened(address.scheme, address.bucket, environment)


@functools.lru_cache(maxsize=64)
def _opened(scheme: str, bucket: str, environment: tuple[tuple[str, str], ...]) -> S3Store | GCSStore:
    """A client, which keeps its connections; another one where the environment changed."""
    from obstore.store import GCSStore, S3Store

    settings = dict(environment)
    _check_settings(settings, scheme)
    endpoint = next((settings[name] for name in _ENDPOINTS[scheme] if settings.get(name)), "")
    options: Any = {
        "timeout": timedelta(seconds=_REQUEST_SECONDS),
        "connect_timeout": timedelta(seconds=5),
        "allow_http": endpoint.startswith("http://"),
    }
    if scheme == "gs":
        return GCSStore(bucket, client_options=options, retry_config=_RETRIES)
    # In bulk is another request, which some stores lack.
    return S3Store(
        bucket,
        client_options=options,
        retry_config=_RETRIES,
        credential_provider=_profile(settings),
        disable_bulk_delete=True,
    )


def _check_settings(settings: Mapping[str, str], scheme: str) -> None:
    """Refuse what no address can be made of; obstore ends with a panic, and not before the first request."""
    for name in _ENDPOINTS[scheme]:
        if (value := settings.get(name)) and not _is_endpoint(value):
            raise InputError(f"{name}: is no address; write https://HOST or http://HOST:PORT")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if not _REGION.fullmatch(settings.get(name, "")):
            raise InputError(f"{name}: is no region; write one such as us-east-1")


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable() and " " not in text


def _profile(settings: Mapping[str, str]) -> Any:
    """Credentials of a profile, as `aws configure` writes them; None where the environment has others."""
    written = Path(settings.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    if "AWS_PROFILE" not in settings and (any(name in settings for name in _OWN_KEYS) or not written.is_file()):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise InputError(f"profiles of AWS need boto3: run {install_command('boto3')}") from None
    return Boto3CredentialProvider()
