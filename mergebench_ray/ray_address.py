"""Where Ray is reached, or shows its dashboard: checked without importing Ray, which takes seconds."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from mergebench_ray.errors import InputError
from mergebench_ray.ray_tokens import check_cluster_token

LOOPBACK = "127.0.0.1"
REMEDY = "check the address, and that the cluster is up (ray status)"
_PROBE_SECONDS = 5.0


def check_ray(address: str | None = None, *, dashboard_port: int | None = None) -> None:
    """Find out without starting anything whether `runtime.start_ray` can work.

    Raises:
        InputError: nothing listens at the cluster's address, it does not take the token here, or the port is taken.
    """
    address = address or os.environ.get("RAY_ADDRESS", "local")
    if address not in ("local", "auto"):
        _check_reachable(address)
        if "://" not in address:
            check_cluster_token(address)
    if dashboard_port is not None:
        _check_port_is_free(dashboard_port)


def _check_reachable(address: str) -> None:
    url = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise InputError(f"Ray address {address!r}: write HOST:PORT, ray://HOST:PORT, auto or local")
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise InputError(f"Ray at {address!r} cannot be reached ({error.strerror or error}): {REMEDY}") from error


def _check_port_is_free(port: int) -> None:
    if not 0 < port < 1 << 16:
        raise InputError(f"--dashboard-port {port}: must be from 1 to 65535")
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InputError(f"--dashboard-port {port}: cannot be used ({error}); choose another") from error
