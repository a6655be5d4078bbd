"""Who may speak with Ray: a local session is for this user on this machine, a cluster is shown the token it wants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from mergebench_ray.errors import InputError
from mergebench_ray.ray_tokens import use_cluster_token, use_local_token

LOCAL_SESSION = """
import json, os, psutil, ray
from mergebench_ray.runtime import start_ray
start_ray(num_cpus=1)
ray.get(ray.remote(num_cpus=0)(lambda: 1).remote())
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
ports = [c.laddr for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
print(json.dumps({"mode": os.environ["RAY_AUTH_MODE"], "addresses": sorted({ip for ip, _ in ports})}))
"""


@pytest.mark.ray
@pytest.mark.apart
def test_a_local_session_listens_on_loopback_and_asks_for_a_token_that_only_its_user_can_read(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_SESSION],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["mode"] == "token"
    assert found["addresses"]
    assert not [ip for ip in found["addresses"] if not ip.removeprefix("::ffff:").startswith("127.")]
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the token of a user who has none would be; settings that a test makes are taken back."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray" / "token"))
    return tmp_path / "ray" / "token"


def test_a_token_that_others_could_read_is_kept_and_made_private(no_token: Path) -> None:
    no_token.parent.mkdir()
    no_token.write_text("a" * 32)
    no_token.chmod(0o644)
    use_local_token()
    assert (no_token.read_text(), no_token.stat().st_mode & 0o777) == ("a" * 32, 0o600)


def test_where_no_file_can_be_written_the_token_is_the_sessions_own(
    no_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/proc/none/token")
    use_local_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


class Head(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Stands for the head of a cluster: it only looks at the token."""

    def __init__(self, token: str | None) -> None:
        self._wanted = None if token is None else f"Bearer {token}"

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Answer any call."""
        shown = dict(details.invocation_metadata).get("authorization")

        def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
            if self._wanted is not None and shown != self._wanted:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "token")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """HOST:PORT of a head that wants the token of the test's parameter."""
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head(request.param)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize("mode", [None, "token"])
@pytest.mark.parametrize("address", ["b" * 32], indirect=True)
def test_a_cluster_that_wants_another_token_is_refused_at_once(
    address: str, mode: str | None, no_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(InputError, match="wants a token, and there is none here"):
        use_cluster_token(address)
    no_token.parent.mkdir()
    no_token.write_text("a" * 32)
    with pytest.raises(InputError, match="does not take the token"):
        use_cluster_token(address)
    assert os.environ.get("RAY_AUTH_MODE") == mode


@pytest.mark.parametrize("address", ["b" * 32], indirect=True)
def test_a_cluster_is_shown_the_token_that_it_wants(address: str, no_token: Path) -> None:
    no_token.parent.mkdir()
    no_token.write_text("b" * 32 + "\n")
    use_cluster_token(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("address", ["b" * 32], indirect=True)
def test_a_cluster_that_wants_a_token_which_is_not_to_be_shown_is_refused(
    address: str, no_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(InputError, match="unset RAY_AUTH_MODE"):
        use_cluster_token(address)


@pytest.mark.parametrize("address", ["b" * 32], indirect=True)
def test_a_token_is_looked_at_before_ray_is_imported(address: str, no_token: Path) -> None:
    program = (
        "import sys\nfrom mergebench_ray.errors import InputError\nfrom mergebench_ray.ray_address import check_ray\n"
        "try:\n    check_ray(sys.argv[1])\nexcept InputError:\n    print('ray' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program, address], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@pytest.mark.parametrize("address", [None], indirect=True)
def test_a_cluster_without_tokens_is_not_asked_for_more(address: str, no_token: Path) -> None:
    use_cluster_token(address)
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("address", [None], indirect=True)
def test_where_ray_would_look_for_a_token_in_vain_the_setting_is_named(
    address: str, no_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(InputError, match="unset RAY_AUTH_MODE"):
        use_cluster_token(address)
