"""Ray for the length of a command: a cluster that is there, or a lean local one that only this machine can reach."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import ray_constants

from mergebench_ray import interrupts
from mergebench_ray.errors import InputError
from mergebench_ray.ray_actors import all_inherit
from mergebench_ray.ray_address import LOOPBACK, REMEDY, check_ray
from mergebench_ray.ray_errors import input_errors
from mergebench_ray.ray_tokens import use_cluster_token, use_local_token

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # where there is no log, the terminal is none
_OBJECT_STORE_BYTES = 512 << 20  # weights do not travel through it on one node
_CLUSTERS = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_prestart_worker_first_driver": "0",  # most would never be used: actors start when they are asked for
}
_INHERITED = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For all processes of a local session: what actors want of their environment, which Ray starts faster without."""


@contextmanager
def ray_session(
    address: str | None = None, *, num_cpus: int | None = None, dashboard_port: int | None = None
) -> Iterator[None]:
    """Use Ray for the length of a block; what was started for it ends with it.

    An `InputError` raised inside a Ray worker leaves the block as itself, not as Ray's error around it.

    Args:
        address: a cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        num_cpus: cores that a local cluster counts; None for all.
        dashboard_port: show the local cluster's dashboard on this loopback port.

    Raises:
        InputError: the cluster cannot be reached, or the port is taken.
    """
    ours = not ray.is_initialized()
    try:
        if ours:
            start_ray(address, num_cpus=num_cpus, dashboard_port=dashboard_port)
        with _losses_logged() if ours else nullcontext(), input_errors():
            yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _losses_logged() -> Iterator[None]:
    """Log what Ray prints of lost processes, in many lines: whoever brings them back says it in one."""
    worker = ray._private.worker
    before = worker.print_to_stdstream

    def log(said: Mapping[str, Any], **_options: Any) -> None:
        logger.warning("%s", " ".join("\n".join(said["lines"]).split()))

    setattr(worker, "print_to_stdstream", log)  # noqa: B010
    try:
        yield
    finally:
        setattr(worker, "print_to_stdstream", before)  # noqa: B010


def start_ray(address: str | None = None, *, num_cpus: int | None = None, dashboard_port: int | None = None) -> None:
    """Connect to a cluster, or start a local one.

    Args:
        address: a cluster, as in `ray.init`; None for RAY_ADDRESS, else a local one.
        num_cpus: cores that a local cluster counts; None for all.
        dashboard_port: show the local cluster's dashboard on this loopback port.

    Raises:
        InputError: the cluster cannot be reached, or the port is taken.
    """
    check_ray(address, dashboard_port=dashboard_port)
    os.environ.update(_SETTINGS)
    address = address or os.environ.get("RAY_ADDRESS", "local")
    interrupts.clean_up_first()
    with interrupts.kept():
        if address != "local":
            _connect(address)
            return
        use_local_token()
        with _on_loopback(), _environment(_INHERITED):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=dashboard_port is not None,
                dashboard_host=LOOPBACK,
                dashboard_port=dashboard_port,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=LOOPBACK,
            )
        all_inherit(_INHERITED)


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Have what is started in the block find this environment."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have all processes of a local session listen on loopback.

    Ray takes the machine's own address for 127.0.0.1, except where it makes no clusters of several machines, as on
    laptops by default; then it stays with 127.0.0.1.
    """
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({_CLUSTERS: "0"}):  # for the processes that Ray starts
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _connect(address: str) -> None:
    if address != "auto" and "://" not in address:
        use_cluster_token(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"Ray at {address!r} cannot be reached ({reason}): {REMEDY}") from error
