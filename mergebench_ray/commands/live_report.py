"""A run's report as a page that is served while the search goes on, and shows what was scored since by itself."""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from mergebench_ray.errors import InputError
from mergebench_ray.runs.run_folder import RunFolder

LOOPBACK = "127.0.0.1"
_PAUSE_SECONDS = 5.0
_SHARE = 0.1
"""Of a processor, at most, is spent on rendering while somebody looks: a search on the same machine needs it more."""


class LiveReport:
    """The report of one run, rendered when it is asked for and trials were added since.

    Attributes:
        run: the run's folder.
        pause: seconds between two renderings, at least.
    """

    def __init__(self, run: Path, pause: float = _PAUSE_SECONDS) -> None:
        self.run = run
        self.pause = pause
        self._lock = threading.Lock()
        self._rendered = ("", b"")
        self._not_before = 0.0

    def version(self) -> str:
        """What the page would be made of now: another text, another page."""
        if time.monotonic() < self._not_before:
            return self._rendered[0]
        try:
            found = RunFolder(self.run).trials_file.stat()
        except OSError as error:
            return f"none-{error.errno}"
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"

    def page(self) -> tuple[str, bytes]:
        """The version, and its page as HTML; where the run cannot be read (yet), the page says why."""
        with self._lock:
            version = self.version()
            if version != self._rendered[0]:
                began = time.monotonic()
                self._rendered = (version, self._render(version).encode())
                now = time.monotonic()
                self._not_before = now + max(self.pause, (now - began) / _SHARE if self.pause else 0.0)
            return self._rendered

    def _render(self, version: str) -> str:
        from mergebench_ray.report.page import page_html
        from mergebench_ray.report.pages import run_page
        from mergebench_ray.runs.comparison import Run

        try:
            return run_page(Run.read(self.run), live=version)
        except InputError as error:
            return page_html(self.run.name, str(error), [], [], scores=False, live=version)


class ReportServer(ThreadingHTTPServer):
    """Serves a report, and nothing else, to whoever has the token: a run's folder is for its owner only.

    Attributes:
        report: the report.
        token: what the address must hold; made anew for each server.
    """

    daemon_threads = True

    def __init__(self, report: LiveReport, host: str = LOOPBACK, port: int = 0) -> None:
        self.report = report
        self.token = secrets.token_urlsafe(24)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"--host {host} --port {port}: cannot listen there ({reason}); choose another, or leave both out"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is, token included."""
        host, port = self.server_address[:2]
        name = socket.gethostname() if host in ("0.0.0.0", "::") else str(host)
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, but not that a browser left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version = "mergebench-ray"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path, _, query = self.path.partition("?")
        if path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        given = parse_qs(query).get("token", [""])[0]
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            self.send_error(HTTPStatus.FORBIDDEN, "The address lacks its token")
            return
        version, page = self.server.report.page() if with_body else (self.server.report.version(), b"")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("ETag", json.dumps(version))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        if with_body:
            self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: lines would hold the token."""


def report_server(run: Path | str, *, host: str | None = None, port: int | None = None) -> ReportServer:
    """A server of a run's report that listens, and answers once `serve_forever` is called.

    Args:
        run: the run's folder; its search may be under way, or about to score its first model.
        host: address to listen on; None for loopback.
        port: to listen on; None for one that is free.

    Raises:
        InputError: the folder holds no run, or nothing can listen there.
    """
    folder = RunFolder(run)
    if not (folder.sweep_file.is_file() or folder.trials_file.is_file()):
        raise InputError(
            f"{run}: holds no run (no {folder.sweep_file.name} there); name the folder that `tune` was given"
        )
    return ReportServer(LiveReport(folder.path.resolve()), host or LOOPBACK, port or 0)
