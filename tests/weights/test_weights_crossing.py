"""Bytes that cross between processes come whole, from whoever was asked for them, or not at all."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDoneYet
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mergebench_ray.weights import crossing
from mergebench_ray.weights.crossing import Bytes, Landing, SenderDoneError, send

CONTENT = np.random.default_rng(0).integers(0, 256, 5_000_001, dtype=np.uint8)
MUCH = np.tile(CONTENT, 4)
"""More than kernels take for a reader."""


@pytest.fixture(params=["127.0.0.1", "::1"])
def landing(request: pytest.FixtureRequest) -> Iterator[Landing]:
    try:
        made = Landing(request.param)
    except OSError:
        pytest.skip(f"this machine has no {request.param}")
    with made:
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def runs(content: Bytes = CONTENT, length: int = 777_777) -> Iterator[Bytes]:
    for first in range(0, len(content), length):
        yield content[first : first + length]


def failure(sending: Future[None], seconds: float) -> None:
    with suppress(NotDoneYet):
        sending.result(seconds)
        raise SenderDoneError


def none(_seconds: float) -> None:
    """Nothing is known."""


def test_what_is_sent_comes_in_its_order(landing: Landing, pool: ThreadPoolExecutor) -> None:
    sending = pool.submit(send, landing.meeting, runs())
    came = [portion.copy() for portion in landing.portions(len(CONTENT), partial(failure, sending))]
    assert np.array_equal(np.concatenate(came), CONTENT)
    sending.result()


def test_nothing_is_taken_from_whoever_has_no_ticket(
    landing: Landing, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing, "_TICKET_SECONDS", 0.1)
    reading = pool.submit(lambda: np.concatenate([p.copy() for p in landing.portions(5, none)]))
    with pytest.raises(ConnectionError):
        send(replace(landing.meeting, ticket=bytes(32)), [np.zeros(5, np.uint8)])
    with socket.create_connection((landing.meeting.host, landing.meeting.port)):  # says nothing, and stays
        send(landing.meeting, [np.arange(5, dtype=np.uint8)])
        assert reading.result(10).tolist() == [0, 1, 2, 3, 4]


def test_a_sender_whose_ticket_comes_too_late_fails_and_its_reader_hears_of_it(
    landing: Landing, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = socket.create_connection

    def late(address: tuple[str, int], timeout: float) -> socket.socket:
        connection = connect(address, timeout)
        time.sleep(0.5)
        return connection

    monkeypatch.setattr(crossing, "_TICKET_SECONDS", 0.1)
    monkeypatch.setattr(socket, "create_connection", late)
    sending = pool.submit(send, landing.meeting, runs())
    reading = pool.submit(lambda: list(landing.portions(len(CONTENT), partial(failure, sending))))
    with pytest.raises(ConnectionError):
        sending.result(10)
    assert reading.exception(10) is sending.exception()


def test_a_reader_hears_between_strangers_that_nobody_else_will_come(
    landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing, "_TICKET_SECONDS", 0.1)
    never: Future[None] = Future()
    never.set_exception(RuntimeError("never came"))
    address = (landing.meeting.host, landing.meeting.port)
    with socket.create_connection(address), socket.create_connection(address):
        with pytest.raises(RuntimeError, match="never came"):
            list(landing.portions(1, partial(failure, never)))
        landing._server.accept()[0].close()  # the second was not waited for


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")
def test_where_ray_encrypts_so_is_what_crosses(
    landing: Landing, pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = str(tmp_path / "certificate"), str(tmp_path / "key")
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=node"
    subprocess.run(["openssl", *make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    for name, value in {"SERVER_CERT": certificate, "SERVER_KEY": key, "CA_CERT": certificate}.items():
        monkeypatch.setenv(f"RAY_TLS_{name}", value)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.create_connection((landing.meeting.host, landing.meeting.port)) as open_one:  # does not encrypt
        open_one.sendall(landing.meeting.ticket)
        sending = pool.submit(send, landing.meeting, runs())
        came = [portion.copy() for portion in landing.portions(len(CONTENT), partial(failure, sending))]
        assert np.array_equal(np.concatenate(came), CONTENT)
        sending.result()
        with suppress(ConnectionResetError):
            assert open_one.recv(1) != crossing._TAKEN


def test_a_ticket_is_not_shown_to_who_looks_at_a_meeting(landing: Landing) -> None:
    assert "ticket" not in repr(landing.meeting)
    with Landing(landing.meeting.host) as other:
        assert other.meeting.ticket != landing.meeting.ticket


def test_a_connection_that_ends_early_is_an_error(landing: Landing, pool: ThreadPoolExecutor) -> None:
    pool.submit(send, landing.meeting, runs())
    came: list[int] = []
    with pytest.raises(ConnectionError, match="before the last byte"):
        came.extend(map(len, landing.portions(len(CONTENT) + 1, none)))
    assert sum(came) == len(CONTENT)


def test_what_is_still_on_its_way_comes_after_the_sender_is_done(landing: Landing, pool: ThreadPoolExecutor) -> None:
    done: Future[None] = Future()
    done.set_result(None)
    with socket.create_connection((landing.meeting.host, landing.meeting.port)) as sender:
        sender.sendall(landing.meeting.ticket)
        reading = pool.submit(lambda: [len(portion) for portion in landing.portions(2, partial(failure, done))])
        assert sender.recv(9) == crossing._TAKEN
        time.sleep(1.5 * crossing._POLL_SECONDS)
        sender.sendall(b"ab")
        assert sum(reading.result(10)) == 2


def test_a_sender_that_is_done_without_having_come_is_an_error(landing: Landing) -> None:
    done: Future[None] = Future()
    done.set_result(None)
    with pytest.raises(SenderDoneError):
        list(landing.portions(1, partial(failure, done)))


@pytest.mark.parametrize("error", [ConnectionResetError, ssl.SSLEOFError])
def test_an_error_of_what_is_sent_is_not_taken_for_one_of_the_connection(
    landing: Landing, pool: ThreadPoolExecutor, error: type[OSError]
) -> None:
    def failing() -> Iterator[Bytes]:
        yield CONTENT[:9]
        raise error("of a file")

    sending = pool.submit(send, landing.meeting, failing())
    with pytest.raises(error, match="of a file"):
        list(landing.portions(10, partial(failure, sending)))


def test_a_sender_that_fails_before_or_after_it_connects_is_heard_of(
    landing: Landing, pool: ThreadPoolExecutor
) -> None:
    def failing() -> Iterator[Bytes]:
        yield CONTENT[:9]
        raise RuntimeError("gone")

    sending = pool.submit(send, landing.meeting, failing())
    with pytest.raises(RuntimeError, match="gone"):
        list(landing.portions(10, partial(failure, sending)))
    never: Future[None] = Future()
    never.set_exception(RuntimeError("never came"))
    with pytest.raises(RuntimeError, match="never came"):
        list(landing.portions(10, partial(failure, never)))


def test_a_sender_waits_for_its_reader_and_ends_with_it(landing: Landing, pool: ThreadPoolExecutor) -> None:
    asked: list[int] = []

    def counted() -> Iterator[Bytes]:
        for index in range(1000):
            asked.append(index)
            yield CONTENT[: 1 << 20]

    sending = pool.submit(send, landing.meeting, counted())
    with closing(landing.portions(1000 << 20, none)) as portions:  # type: ignore[type-var]
        next(portions)
        time.sleep(0.3)
        assert len(asked) < 50
        assert not sending.done()
    sending.result(10)
    assert len(asked) < 50


@pytest.fixture
def _asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "_ASK_SECONDS", 0.02)


@pytest.mark.usefixtures("_asks_often")
def test_a_reader_that_takes_nothing_for_too_long_is_left_in_one_line(
    landing: Landing, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []

    def endless() -> Iterator[Bytes]:
        try:
            while True:
                yield CONTENT
        finally:
            ended.append(1)

    sending = pool.submit(send, landing.meeting, endless(), still_seconds=0.1)
    with closing(landing.portions(1000 << 20, none)) as portions:  # type: ignore[type-var]
        next(portions)
        with pytest.raises(ConnectionError, match="the reader has taken nothing for 0 s"):
            sending.result(10)
    del sending
    assert ended, "what it would have been sent is kept"
    assert [record.message for record in caplog.records] == [
        f"a reader on {landing.meeting.host} has taken nothing for 0 s: it is sent nothing more"
    ]


@pytest.mark.usefixtures("_asks_often")
def test_a_reader_that_takes_nothing_for_a_while_is_waited_for(
    landing: Landing, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str | None] = []
    why_gone = crossing._why_gone
    monkeypatch.setattr(crossing, "_why_gone", lambda meeting: found.append(why_gone(meeting)))
    sending, content = pool.submit(send, landing.meeting, runs(MUCH)), MUCH.copy()
    with closing(landing.portions(len(MUCH), none)) as portions:  # type: ignore[type-var]
        at = 0
        for portion in portions:
            if not at:
                time.sleep(0.2)
            content[at : at + len(portion)] -= portion
            at += len(portion)
    sending.result(10)
    assert not content.any()
    assert found
    assert set(found) == {None}


@pytest.mark.usefixtures("_asks_often")
def test_a_reader_that_no_longer_answers_is_left_at_once(
    landing: Landing, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    sending = pool.submit(send, landing.meeting, runs(MUCH))
    with closing(landing.portions(len(MUCH), none)) as portions:  # type: ignore[type-var]
        next(portions)
        landing._server.close()  # as where its node is gone: nobody takes another connection, and this one stays open
        with pytest.raises(ConnectionError, match="the reader is gone"):
            sending.result(10)
    [record] = caplog.records
    assert record.message.endswith("is gone (Connection refused): it is sent nothing more")


def test_readings_one_after_the_other_take_the_memory_of_one(pool: ThreadPoolExecutor) -> None:
    def place() -> int:
        with Landing("127.0.0.1") as landing:
            pool.submit(send, landing.meeting, runs())
            return {portion.ctypes.data for portion in landing.portions(len(CONTENT), none)}.pop()

    with ThreadPoolExecutor(3) as readers:
        assert len({readers.submit(place).result() for _ in range(3)}) == 1


def test_a_reader_that_cannot_be_reached_is_an_error() -> None:
    with Landing("127.0.0.1") as gone:
        pass
    with pytest.raises(ConnectionRefusedError):
        send(gone.meeting, runs())
