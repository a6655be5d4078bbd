"""Engines of one node that load the same weights at once: one has them come, and all read the memory that it writes.

They meet at a socket of the node, over which go names of tensors and places in memory, never weights. Whoever does not
find the others within seconds, or wants tensors that the one which has them come does not, reads for itself.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Collection, Generator, Hashable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TypeAlias

from mergebench_ray.weights.manifest import WeightBucket

Buckets: TypeAlias = Generator[WeightBucket, None, None]
_MEET_SECONDS = 5.0
"""In which all of them have begun to load: they were free, and are told at once."""
_POLL_SECONDS = 0.02
_SAME_USER = struct.Struct("3i")  # process, user and group of who is at the other end


@dataclass(frozen=True)
class Together:
    """What an engine is told of those that load with it.

    Attributes:
        meeting: the name of their socket, of this load alone.
        others: how many read what the first one has come.
        is_first: whether this is the one.
    """

    meeting: str
    others: int
    is_first: bool

    def buckets(self, names: Collection[str], read: Callable[[], Buckets]) -> Buckets:
        """Buckets with the tensors of these names, in memory of this node.

        Args:
            names: of tensors that come from elsewhere.
            read: has them come to this process.

        Raises:
            RuntimeError: the one that had them come has ended or failed.
            Exception: whatever `read` does.
        """
        if self.is_first:
            return _lead(self, frozenset(names), read)
        return _follow(self, frozenset(names), read)


def together(places: Sequence[Hashable]) -> list[Together | None]:
    """What to tell engines that load the same weights at once; None for those that are alone on their node.

    Args:
        places: the node of each.
    """
    meetings = {place: secrets.token_hex(16) for place in places if places.count(place) > 1}
    return [
        Together(meetings[place], places.count(place) - 1, place not in places[:index]) if place in meetings else None
        for index, place in enumerate(places)
    ]


def _lead(company: Together, names: frozenset[str], read: Callable[[], Buckets]) -> Buckets:
    with ExitStack() as stack:
        others = [stack.enter_context(one) for one in _met(company, names)]
        buckets = stack.enter_context(closing(read()))
        for bucket in buckets:
            others = [one for one in others if _told(one, bucket)]
            yield bucket
            others = [one for one in others if _has_read(one)]


def _follow(company: Together, names: frozenset[str], read: Callable[[], Buckets]) -> Buckets:
    first = _joined(company, names)
    if first is None:
        yield from read()
        return
    with first:
        is_last = False
        while not is_last:
            try:
                bucket: WeightBucket = first.recv()
            except (EOFError, OSError) as error:
                raise RuntimeError("the engine that had the weights of this node come has ended or failed") from error
            is_last, wanted = bucket.is_last, tuple(one for one in bucket.tensors if one.name in names)
            if wanted or is_last:
                yield replace(bucket, tensors=wanted)
            with suppress(OSError):
                first.send(True)


def _met(company: Together, names: frozenset[str]) -> list[Connection]:
    """Those that have come, and want nothing else."""
    found, came, until = list[Connection](), 0, time.monotonic() + _MEET_SECONDS
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(_address(company))
        server.listen(company.others)
        while came < company.others and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            with suppress(OSError, EOFError):
                other = server.accept()[0]
                if not _is_own(other):
                    other.close()
                    continue
                came += 1
                connection = _connection(other)
                is_same = connection.poll(_MEET_SECONDS) and connection.recv() <= names
                connection.send(is_same)
                if is_same:
                    found.append(connection)
    return found


def _joined(company: Together, names: frozenset[str]) -> Connection | None:
    """A connection to the one that has all of these tensors come; None where there is none."""
    until = time.monotonic() + _MEET_SECONDS
    while time.monotonic() < until:
        first = socket.socket(socket.AF_UNIX)
        try:
            first.connect(_address(company))
        except OSError:
            first.close()
            time.sleep(_POLL_SECONDS)
            continue
        if not _is_own(first):
            first.close()
            return None
        connection = _connection(first)
        with suppress(OSError, EOFError):
            connection.send(names)
            if connection.recv():
                return connection
        connection.close()
        return None
    return None


def _address(company: Together) -> str:
    return f"\0mergebench-ray-{company.meeting}"


def _connection(one: socket.socket) -> Connection:
    one.setblocking(True)
    return Connection(one.detach())


def _is_own(other: socket.socket) -> bool:
    """Whether it is a process of the same user that is at the other end: what it says is unpickled."""
    told = other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SAME_USER.size)
    return bool(_SAME_USER.unpack(told)[1] == os.getuid())


def _told(other: Connection, bucket: WeightBucket) -> bool:
    try:
        other.send(bucket)
    except OSError:
        return False
    return True


def _has_read(other: Connection) -> bool:
    try:
        return bool(other.recv())
    except (EOFError, OSError):
        return False
