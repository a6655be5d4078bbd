"""Tokens of Ray: a session on this machine always has one, a cluster is asked whether it wants one.

What is asked here is asked without importing Ray, which takes seconds.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from mergebench_ray.errors import InputError

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_PROBE = "/ray.rpc.InternalKVGcsService/InternalKVGet"  # any call of a head: only its status counts
_PROBE_SECONDS = 5.0


def token_file() -> Path:
    """Where Ray looks for the token of this user."""
    return Path(os.environ.get(_PATH) or Path.home() / ".ray" / "auth_token")


def use_local_token() -> None:
    """Have the next local session ask for a token, unless RAY_AUTH_MODE says otherwise.

    The token is this user's, made if there is none, in a file that nobody else may read: Ray itself would make it
    readable for all.
    """
    if _mode() not in ("", "token"):
        return
    if not os.environ.get(_TOKEN):
        try:
            _keep_private(token_file())
        except (OSError, RuntimeError):
            # No home that can be written: the token is of this session alone.
            os.environ[_TOKEN] = secrets.token_hex(32)
    _enable()


def use_cluster_token(address: str) -> None:
    """Show a token to the cluster at HOST:PORT if it wants one.

    Raises:
        InputError: as `check_cluster_token`.
    """
    if check_cluster_token(address):
        _enable()


def check_cluster_token(address: str) -> bool:
    """Whether the cluster at HOST:PORT is to be shown a token, which it then takes.

    Ray itself would try for half a minute and then say that the cluster cannot be reached.

    Raises:
        InputError: it wants one and there is none here, or another, or RAY_AUTH_MODE is against it.
    """
    mode = _mode()
    if mode not in ("", "token", "disabled"):
        return False  # not by a token, but by something that Ray knows of
    wanted = _is_refused(address, None)
    if mode == "disabled" and wanted:
        raise InputError(f"Ray at {address!r} wants a token, and {_MODE}=disabled shows it none: unset {_MODE}")
    if not wanted and mode != "token":
        return False
    remedy = f"copy ~/.ray/auth_token of the cluster's head to {token_file()}, or set {_TOKEN} to what it holds"
    token = _token()
    if token is None and not wanted:
        raise InputError(f"{_MODE}=token, and no token is here; Ray at {address!r} wants none: unset {_MODE}")
    if token is None:
        raise InputError(f"Ray at {address!r} wants a token, and there is none here: {remedy}")
    if wanted and _is_refused(address, f"Bearer {token}"):
        raise InputError(f"Ray at {address!r} does not take the token that is here: {remedy}")
    return True


def _mode() -> str:
    return os.environ.get(_MODE, "").lower()


def _token() -> str | None:
    """The token that Ray would show."""
    if token := os.environ.get(_TOKEN, "").strip():
        return token
    try:
        return token_file().read_text(encoding="utf-8").strip() or None
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None


def _keep_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    status = path.stat()
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o600)


def _enable() -> None:
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    os.environ[_MODE] = "token"
    Config.initialize("")  # it was read when Ray was imported
    AuthenticationTokenLoader.instance().reset_cache()


def _is_refused(address: str, authorization: str | None) -> bool:
    """Whether a head refuses a call for want of a token, or because of the one that it is shown."""
    import grpc  # type: ignore[import-untyped]

    metadata = [("authorization", authorization)] if authorization is not None else []
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_PROBE, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=_PROBE_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False
