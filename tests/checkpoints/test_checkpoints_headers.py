"""Headers of models on the hub: asked for by ranges of bytes, from a server of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mergebench_ray.checkpoints import resolve
from tiny_models import tiny_llama

SHOW = """
from mergebench_ray.checkpoints.headers import resolve_headers
found = resolve_headers("some/model@main")
print({name: (info.shape, str(info.dtype)) for name, info in found.tensors.items()})
"""


@contextmanager
def hub_of(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """A hub with one model; yields its address, and the number of bytes of each answer."""
    sent: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            file = folder / self.path.partition("/resolve/main/")[2]
            if "/resolve/main/" not in self.path or not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = file.read_bytes()
            wanted = self.headers.get("Range")
            self.send_response(206 if wanted else 200)
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                content = content[int(first) : int(last) + 1]
            self.send_header("ETag", f'"{file.name}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                sent.append(len(content))
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_headers_of_a_hub_model_are_those_of_its_files_and_weights_stay_there(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", hidden_size=256)
    with hub_of(folder) as (address, sent):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        finished = subprocess.run(
            [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    here = resolve(str(folder))
    expected = {name: (info.shape, str(info.dtype)) for name, info in here.tensors.items()}
    assert finished.stdout.strip().splitlines()[-1:] == [str(expected)], finished.stderr
    assert sum(sent) < 200_000 < (folder / "model.safetensors").stat().st_size
