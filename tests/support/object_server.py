"""An S3 server on this machine, moto's, which keeps what it holds in memory and writes down what it was asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import httpx
import obstore
from obstore.store import S3Store

BUCKET = "models"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-sees"}

_SIGNED = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/us-east-1/s3/aws4_request"


def stored(name: str) -> str:
    """The address of a folder of the bucket."""
    return f"s3://{BUCKET}/{name}"


@dataclass(frozen=True)
class Request:
    """A request, and how many bytes of an object were asked for by range or sent as a whole."""

    method: str
    path: str
    num_bytes: int


@dataclass
class ObjectServer:
    """The server.

    Attributes:
        environment: by which it is found.
        requests: what it was asked for.
        refuse: says of a method and a path whether it is answered with 403.
        before: is called with method and path before a request is answered.
    """

    environment: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    refuse: Callable[[str, str], bool] = lambda method, path: False
    before: Callable[[str, str], None] = lambda method, path: None

    @property
    def store(self) -> S3Store:
        return S3Store(
            BUCKET,
            endpoint=self.environment["AWS_ENDPOINT_URL"],
            access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
        )

    def put(self, folder: Path, key: str) -> str:
        """Upload a folder; returns its address."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                obstore.put(self.store, f"{key}/{file.relative_to(folder)}", file.read_bytes())
        return stored(key)

    def content(self, key: str) -> dict[str, bytes]:
        """What lies in a folder, by name."""
        found = [meta["path"] for part in obstore.list(self.store, f"{key}/") for meta in part]
        return {path.removeprefix(f"{key}/"): bytes(obstore.get(self.store, path).bytes()) for path in found}

    def bytes_read(self, ending: str = "") -> int:
        """Bytes of objects that were asked for since the last `forget`."""
        return sum(one.num_bytes for one in self.requests if one.method == "GET" and one.path.endswith(ending))

    def forget(self) -> None:
        self.requests.clear()
        self.refuse = lambda method, path: False
        self.before = lambda method, path: None


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """A server with an empty bucket, until the block ends."""
    # Here, since vLLM looks at all that the modules of its process hold, which Flask's proxies do not stand.
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ObjectServer()
    answer = DomainDispatcherApplication(create_backend_app)

    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        # moto takes Google's client for a stranger.
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):
            environ["HTTP_AUTHORIZATION"] = _SIGNED
        server.before(method, path)
        if server.refuse(method, path):
            body = f"<Error><Code>AccessDenied</Code><Message>{escape(path)}</Message></Error>".encode()
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if method == "HEAD" else body]
        is_object = path.count("/") > 1

        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            size = int(dict(headers).get("Content-Length", 0)) if is_object else 0
            server.requests.append(Request(method, path, size))
            return start(status, headers, *rest)

        return answer(environ, started)

    listening = make_server("127.0.0.1", 0, serve, threaded=True)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    server.environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.server_port}"}
    try:
        httpx.put(f"{server.environment['AWS_ENDPOINT_URL']}/{BUCKET}").raise_for_status()
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
