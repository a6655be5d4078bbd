"""The page's way by hand is true: its commands, as they stand there, on three hosts."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hosts import Host, hosts

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^```bash title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
pytestmark = [pytest.mark.ray, pytest.mark.apart]


@pytest.fixture(scope="module")
def network() -> Iterator[list[Host]]:
    """Three hosts that have never seen Ray, but for the second, which has a token of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mergebench-ray-"))
    try:
        with hosts(3, folder) as made:
            token = made[1].home / ".ray" / "auth_token"
            token.parent.mkdir()
            token.write_text("a" * 64)
            yield made
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no network namespaces can be made here: {error}")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def commands(network: list[Host]) -> dict[str, str]:
    """What the page says to type, by where."""
    page = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    return {where: text.replace("FIRST_NODE", network[0].address) for where, text in BLOCK.findall(page)}


@pytest.fixture(scope="module")
def cluster(network: list[Host], commands: dict[str, str]) -> list[Host]:
    """The hosts after what the page says was done on each of them."""
    finish(network[0].run(commands["first node"], folder=ROOT))
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda host: host.run(commands["every other node"], folder=ROOT), network[1:]):
            finish(done)
    return network


def finish(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_three_hosts_are_a_cluster_that_asks_for_the_token(cluster: list[Host], commands: dict[str, str]) -> None:
    found = finish(cluster[1].run(commands["any node"], folder=ROOT)).splitlines()[-1]
    token = cluster[1].home / ".ray" / "auth_token"
    assert re.fullmatch(
        rf"ok +Ray: [\d.]+; starts; token authentication, {token} has mode 600; a cluster of 3 nodes", found
    )


def test_a_command_without_the_token_is_refused_in_one_line(
    cluster: list[Host], commands: dict[str, str], tmp_path: Path
) -> None:
    address = commands["any node"].splitlines()[0]
    command = f"{address}\nmergebench-ray tune sweeps/quickstart.yaml --out '{tmp_path}/run'"
    done = cluster[2].run(command, folder=ROOT, home=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: Ray at '[\d.:]+' wants a token, and there is none here: [^\n]+\n", done.stderr)
    assert not (tmp_path / "run").exists()
