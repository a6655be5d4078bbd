"""Tokens of Ray: a session on this machine always has one, a cluster is asked whether it wants one."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from mergebench_ray.errors import InputError

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_PROBE = "/ray.rpc.InternalKVGcsService/InternalKVGet"  # any call of a head: only its status counts
_PROBE_SECONDS = 5.0


def token_file() -> Path:
    """Where Ray looks for the token of this user."""
    return Path(os.environ.get(_PATH) or Path.home() / ".ray" / "auth_token")


def use_local_token() -> None:
    """Have the next local session ask for a token; RAY_AUTH_MODE, where it is set, decides otherwise.

    The token is this user's, made if there is none, in a file that nobody else may read: Ray itself would make it
    readable for all.
    """
    if _MODE in os.environ:
        return
    if not os.environ.get(_TOKEN):
        try:
            _keep_private(token_file())
        except (OSError, RuntimeError):
            # No home that can be written: the token is of this session alone.
            os.environ[_TOKEN] = secrets.token_hex(32)
    _enable()


def use_cluster_token(address: str) -> None:
    """Show a token to the cluster at HOST:PORT if it wants one; RAY_AUTH_MODE, where it is set, decides otherwise.

    Ray itself would try for half a minute and then say that the cluster cannot be reached.

    Raises:
        InputError: it wants one and there is none here, or another.
    """
    if _MODE in os.environ or not _is_refused(address, None):
        return
    remedy = f"copy ~/.ray/auth_token of the cluster's head to {token_file()}, or set {_TOKEN} to what it holds"
    if not _has_token():
        raise InputError(f"Ray at {address!r} wants a token, and there is none here: {remedy}")
    _enable()
    if _is_refused(address, AuthenticationTokenLoader.instance().get_token_for_http_header().get("authorization", "")):
        del os.environ[_MODE]
        raise InputError(f"Ray at {address!r} does not take the token that is here: {remedy}")


def _keep_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    status = path.stat()
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o600)


def _has_token() -> bool:
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return bool(loader.has_token(ignore_auth_mode=True))
    except AuthenticationError:  # RAY_AUTH_TOKEN_PATH names a file that is not there
        return False


def _enable() -> None:
    os.environ[_MODE] = "token"
    Config.initialize("")  # it was read when Ray was imported
    AuthenticationTokenLoader.instance().reset_cache()


def _is_refused(address: str, authorization: str | None) -> bool:
    """Whether a head refuses a call for want of a token, or because of the one that it is shown."""
    metadata = [("authorization", authorization)] if authorization is not None else []
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_PROBE, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=_PROBE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
