"""Bytes on their way from a process of one node to one of another, over a connection that is made for them alone.

Whoever reads listens on its node's own address, and asks whoever has the bytes, by a call of Ray's, to connect and
send. The call carries a ticket, by which the sender is told from strangers; the reader answers it with a byte, so that
none sends to a reader that no longer listens to it. Where Ray uses TLS, so does this.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

Bytes: TypeAlias = NDArray[np.uint8]
_PORTION = 8 << 20
"""Bytes that are taken at a time, at most: with 1 MiB the reader wakes so often that it takes a fourth longer."""
_kept: list[Bytes] = []
"""Memory for a portion, of the last reading: what each thread took anew would stay with the process."""
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 20.0
_TICKET_SECONDS = 10.0
"""In which whoever connects shows its ticket, certificates included."""
_ANSWER_SECONDS = 60.0
"""In which a sender has its ticket answered: strangers may be before it."""
_STILL_SECONDS = 600.0
"""In which a reader takes what was sent to it: an engine may be at a load for minutes. One that hangs is killed before
(`heartbeat`), and its kernel then ends the connection."""
_ASK_SECONDS = 20.0
"""Without a byte that moved, after which a sender asks whether its reader is there; within `_CONNECT_SECONDS` it is."""
_REASON_SECONDS = 10.0
"""In which it is heard why a connection has ended, if for any reason."""
_TICKET_BYTES = 32
_TAKEN = b"\x06"
"""The answer to a ticket. No TLS record begins so."""
_KEPT_ALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
"""So that a machine that is gone without a word is noticed after half a minute, by whoever has sent it all it has."""


class SenderDoneError(ConnectionError):
    """The sender says that it has sent all."""


@dataclass(frozen=True)
class Meeting:
    """Where a reader waits for its bytes.

    Attributes:
        host: the address of its node.
        port: there.
        ticket: what the sender shows.
    """

    host: str
    port: int
    ticket: bytes = field(repr=False)


def send(meeting: Meeting, runs: Iterable[Bytes], still_seconds: float = _STILL_SECONDS) -> None:
    """Send bytes to the reader that waits for them; it is left to the reader to see that all have come.

    Each run has left its memory when the next one is asked for.

    Args:
        meeting: where the reader waits.
        runs: the bytes.
        still_seconds: for which a reader that is there may take nothing; one that is gone is noticed within a minute.

    Raises:
        OSError: the reader cannot be reached, does not take the ticket, is gone with its node, or stands still.
        Exception: whatever `runs` does; the connection ends there.
    """
    context = _ray_context(server_side=False)  # reads files, for which the reader does not wait
    plain = socket.create_connection((meeting.host, meeting.port), timeout=_CONNECT_SECONDS)
    _keep_alive(plain)
    plain.settimeout(_ANSWER_SECONDS)
    with plain, _within(context, plain, server_side=False) as connection:
        connection.sendall(meeting.ticket)
        if connection.recv(len(_TAKEN)) != _TAKEN:
            raise ConnectionError("the reader did not take the ticket")
        connection.settimeout(_ASK_SECONDS)
        for run in runs:
            try:
                _send(connection, run, meeting, still_seconds)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                return  # the reader has had enough, or knows what happened


def _send(connection: socket.socket, run: Bytes, meeting: Meeting, still_seconds: float) -> None:
    """Send a run of bytes, as long as the reader takes some now and then."""
    left, moved = run.data, time.monotonic()
    while len(left):
        try:
            left = left[connection.send(left) :]
        except TimeoutError:
            problem = _why_gone(meeting)
            if problem is None and time.monotonic() - moved < still_seconds:
                continue
            if problem is None:
                problem = f"has taken nothing for {still_seconds:.0f} s"
            _log.warning("a reader on %s %s: it is sent nothing more", meeting.host, problem)
            raise ConnectionError(f"the reader {problem}") from None
        moved = time.monotonic()


def _why_gone(meeting: Meeting) -> str | None:
    """Why a reader is no longer there; None where it is, whatever it does.

    By another connection to where it waited, which its kernel takes: of one on which bytes are on their way, the kernel
    here says nothing for a quarter of an hour, or with TCP_USER_TIMEOUT the same of readers that are there and take
    nothing for a while.
    """
    try:
        socket.create_connection((meeting.host, meeting.port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return f"is gone ({error.strerror or 'it does not answer'})"
    return None


class Landing:
    """Where the bytes of one sender arrive. For the length of a `with` block.

    Args:
        host: the address of this node that others know.

    Attributes:
        meeting: what the sender is told.
    """

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family)
        self._server.settimeout(_POLL_SECONDS)
        self.meeting = Meeting(host, self._server.getsockname()[1], secrets.token_bytes(_TICKET_BYTES))

    def __enter__(self) -> Landing:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.close()

    def portions(self, count: int, watch: Callable[[float], None]) -> Iterator[Bytes]:
        """So many bytes, as they come.

        Args:
            count: how many there are.
            watch: called while none come, with seconds in which it may hear why none will; it raises that, and
                `SenderDoneError` where the sender has ended without an error.

        Yields:
            runs that may be read until the next is asked for.

        Raises:
            ConnectionError: the connection ended before the last byte.
            Exception: what `watch` does.
        """
        with self._met(watch) as connection, _portion_memory() as memory:
            while count:
                came, broken = 0, None
                try:
                    came = connection.recv_into(memory[:count].data)
                except TimeoutError:
                    with suppress(SenderDoneError):  # what is on its way comes, or the connection ends
                        watch(0.0)
                    continue
                except OSError as error:
                    broken = error
                if not came:
                    with suppress(SenderDoneError):
                        watch(_REASON_SECONDS)
                    raise ConnectionError("the connection ended before the last byte") from broken
                count -= came
                yield memory[:came]

    def _met(self, watch: Callable[[float], None]) -> socket.socket:
        """The connection of the one that shows the ticket; any other is closed.

        A sender is not done without an error before its ticket was answered: `watch` may raise that at any time here.
        """
        context = _ray_context(server_side=True)
        while True:
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                watch(0.0)
                continue
            until = time.monotonic() + _TICKET_SECONDS
            with suppress(OSError):  # whatever a stranger does
                connection.settimeout(_TICKET_SECONDS)
                connection = _within(context, connection, server_side=True)
                if secrets.compare_digest(_ticket(connection, until), self.meeting.ticket):
                    _keep_alive(connection)
                    connection.sendall(_TAKEN)
                    connection.settimeout(_POLL_SECONDS)
                    return connection
            connection.close()
            watch(0.0)  # strangers may come one after the other


@contextmanager
def _portion_memory() -> Iterator[Bytes]:
    """[_PORTION], used before where that is over."""
    memory = _kept.pop() if _kept else np.empty(_PORTION, np.uint8)
    try:
        yield memory
    finally:
        _kept[:] = [memory]


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel ask the other side whether it is there, while nothing is on its way to it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEPT_ALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _ray_context(*, server_side: bool) -> ssl.SSLContext | None:
    """Both sides' certificates, which are then in place, where Ray uses TLS."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a certificate stands for any node
    context.verify_mode = ssl.CERT_REQUIRED
    if server_side:
        context.num_tickets = 0  # what a sender has not read when it closes makes the kernel throw its last bytes away
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    context.load_verify_locations(os.environ["RAY_TLS_CA_CERT"])
    return context


def _within(context: ssl.SSLContext | None, connection: socket.socket, *, server_side: bool) -> socket.socket:
    """The connection within TLS, or itself where there is none."""
    return connection if context is None else context.wrap_socket(connection, server_side=server_side)


def _ticket(connection: socket.socket, until: float) -> bytes:
    """The first bytes that come over a connection; fewer where no more come until then, of `time.monotonic`."""
    found = b""
    while len(found) < _TICKET_BYTES and (left := until - time.monotonic()) > 0:
        connection.settimeout(left)
        if not (more := connection.recv(_TICKET_BYTES - len(found))):
            break
        found += more
    return found
