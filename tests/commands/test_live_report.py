"""`report --serve`: the page of a run that goes on, for whoever has the token, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from command_line import CommandLine
from made_up_run import write_run
from made_up_trials import made_up_trials
from mergebench_ray.commands.live_report import LiveReport, ReportServer
from mergebench_ray.runs.trial_store import TrialStore


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReportServer]:
    """A server of a run that has scored three models; it renders whenever there is something new."""
    write_run(tmp_path / "run", made_up_trials()[:3])
    with ReportServer(LiveReport(tmp_path / "run", pause=0.0)) as served:
        thread = threading.Thread(target=served.serve_forever, args=[0.01])
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def ask(server: ReportServer, path: str, method: str = "GET") -> tuple[HTTPResponse, str]:
    """What a real request is answered with: the response, and its body."""
    connection = HTTPConnection(*server.server_address[:2], timeout=30)  # type: ignore[arg-type]
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


def test_the_page_shows_what_was_scored_and_is_another_once_more_was(server: ReportServer, tmp_path: Path) -> None:
    url = urlsplit(server.url)
    path = f"{url.path}?{url.query}"
    response, page = ask(server, path)
    assert response.status == 200
    assert "<title>made-up</title>" in page
    version = response.headers["ETag"]
    assert f"data-version={version}" in page
    assert ask(server, path, "HEAD")[0].headers["ETag"] == version
    TrialStore(tmp_path / "run").append(made_up_trials()[3])
    head, body = ask(server, path, "HEAD")
    assert head.headers["ETag"] != version
    assert body == ""
    assert ask(server, path)[1].count("<tr") > page.count("<tr")


def test_between_two_renderings_is_a_pause(tmp_path: Path) -> None:
    report = LiveReport(tmp_path, pause=60.0)
    version, page = report.page()
    assert "no such file" in page.decode()
    write_run(tmp_path / "run", made_up_trials()[:1])
    (tmp_path / "run" / "trials.parquet").rename(tmp_path / "trials.parquet")
    assert report.page() == (version, page)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 403),
        ("/?token=", 403),
        ("/?token=wrong", 403),
        ("/?token=%ff%C3%A9", 403),
        ("/trials.parquet?TOKEN", 404),
        ("/report.html?TOKEN", 404),
        ("/../run/sweep.yaml?TOKEN", 404),
        ("//etc/passwd?TOKEN", 404),
        ("/%2e%2e/%2e%2e/etc/passwd?TOKEN", 404),
    ],
)
def test_there_is_one_page_and_none_without_the_token(server: ReportServer, path: str, status: int) -> None:
    response, body = ask(server, path.replace("TOKEN", f"token={server.token}"))
    assert response.status == status
    assert "made-up" not in body
    assert server.token not in body


def test_nothing_is_written_and_other_methods_are_refused(server: ReportServer, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert ask(server, f"/?token={server.token}", "POST")[0].status == 501
    assert ask(server, f"/?token={server.token}")[0].status == 200
    assert sorted(tmp_path.rglob("*")) == before


def test_every_server_has_a_token_of_its_own_wherever_it_listens(tmp_path: Path) -> None:
    with ReportServer(LiveReport(tmp_path)) as one, ReportServer(LiveReport(tmp_path), "0.0.0.0") as other:
        assert one.token != other.token
        assert min(map(len, (one.token, other.token))) >= 32
        assert one.url.startswith("http://127.0.0.1:")
        assert "0.0.0.0" not in other.url


def hear_interrupts() -> None:
    """A shell that runs these tests in the background has children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_command_prints_the_address_and_ends_with_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", made_up_trials()[:1])
    command = [sys.executable, "-m", "mergebench_ray", "report", str(tmp_path / "run"), "--serve"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=hear_interrupts) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        line = running.stdout.readline()
        url = urlsplit(line.split()[-1])
        assert line.startswith("the report, until Ctrl-C: http://127.0.0.1:")
        connection = HTTPConnection("127.0.0.1", url.port or 0, timeout=30)
        connection.request("HEAD", f"/?{url.query}")
        assert connection.getresponse().status == 200
        running.send_signal(signal.SIGINT)
        assert (running.stdout.read(), running.stderr.read()) == ("", "stopped\n")
    assert running.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty", "--serve"], "holds no run"),
        (["run", "--port", "8000"], "for --serve"),
        (["run", "--serve", "--out", "page.html"], "writes no files"),
        (["run", "run", "--serve"], "one run"),
        (["run", "--serve", "--port", "70000"], "--port 70000: cannot listen there"),
        (["run", "--serve", "--host", "203.0.113.7"], "--host 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "sweep.yaml").touch()
    assert said in CommandLine(capsys, monkeypatch).refused("report", *arguments)
