"""What hostile programs would leave behind or get hold of: daemons, ports, descriptors, folders, threads."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergebench_ray.sandbox import kernel
from mergebench_ray.sandbox import room as rooms
from mergebench_ray.sandbox.runner import Limits, run_program

FOLDER = Path(kernel.__file__).parent.parent


def run_beside_kernel(script: str) -> str:
    """Output of a script that can import the sandbox's modules, in a process that it may take rights from."""
    command = [sys.executable, "-c", script]
    environment = {"PYTHONPATH": str(FOLDER)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def kernel_lacks() -> str:
    script = "import sandbox.setup as s, tempfile; print(*s.find_setup(tempfile.mkdtemp(), {}).lacking, sep='; ')"
    return run_beside_kernel(script)


LACKING = kernel_lacks()
needs_namespaces = pytest.mark.skipif("namespaces" in LACKING, reason="this system permits no user namespaces")


DAEMON = """
import os, sandbox.kernel as k, time
{prepare}
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.write(writing, str(os.getpid()).encode())
        time.sleep(60)
    os._exit(0)
daemon = int(os.read(reading, 20))
os.kill(daemon, 0)
assert set(k.end_descendants()) >= {{child, daemon}}
try:
    os.kill(daemon, 0)
except ProcessLookupError:
    print("gone")
"""


@pytest.mark.skipif(not kernel.LINUX, reason="orphans are adopted on Linux only")
def test_daemons_are_ended_without_a_process_table_of_their_own() -> None:
    assert run_beside_kernel(DAEMON.format(prepare="k.adopt_orphans()")) == "gone\n"


@needs_namespaces
def test_daemons_are_ended_with_a_process_table_of_their_own() -> None:
    assert run_beside_kernel(DAEMON.format(prepare="assert k.enter_namespaces(); assert os.getpid() == 1")) == "gone\n"


@needs_namespaces
def test_namespaces_reach_no_port_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert run_beside_kernel(f"import socket; {connect}; print('reached')") == "reached\n"
        script = (
            f"import socket, sandbox.kernel as k; k.enter_namespaces()\ntry: {connect}\nexcept OSError: print('not')"
        )
        assert run_beside_kernel(script) == "not\n"


def test_nothing_remains_when_the_process_that_owns_the_pool_is_killed() -> None:
    script = (
        "import os, sandbox.runner as s; pool = s.SandboxPool(num_workers=1); assert pool.submit('1').result().passed\n"
    )
    script += "launcher = pool._launchers[0]; print(launcher._process.pid, launcher._folder.name, flush=True)\n"
    pid, folder = run_beside_kernel(script + "os._exit(0)").split()
    deadline = time.monotonic() + 20.0
    while (Path(folder).exists() or Path("/proc", pid).exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(folder).exists()
    assert not Path("/proc", pid).exists()


def test_a_program_holds_no_descriptor_but_its_streams_and_its_two_pipes() -> None:
    program = (
        "import os, stat\nopen_ones = []\nfor n in range(1024):\n"
        "    try: open_ones.append((n, stat.S_ISFIFO(os.fstat(n).st_mode)))\n    except OSError: pass\n"
        "assert [n for n, pipe in open_ones if not pipe] == [0, 1, 2], open_ones\n"
        "assert len(open_ones) == 5, open_ones"
    )
    assert run_program(program).message == ""


@pytest.mark.skipif("threads" in LACKING, reason="the kernel counts no threads here, so that programs may start none")
def test_threads_are_limited() -> None:
    program = (
        "import threading, time\nthreading.stack_size(32768)\nstarted = 0\n"
        "try:\n    while True:\n        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "        started += 1\nexcept RuntimeError: pass\nassert 4 <= started <= LIMIT, started"
    )
    # Without a process table of its own, the user's other processes count, and some may come.
    most = 8 if "namespaces" not in LACKING else 600
    assert run_program(program.replace("LIMIT", str(most)), limits=Limits(processes=8)).message == ""


def test_a_room_on_disk_is_full_when_its_files_are_or_when_nobody_can_look(tmp_path: Path) -> None:
    room = rooms.Room(str(tmp_path / "room"), 10_000, owner=None, mounts=False)
    assert room.watched
    (tmp_path / "room" / "a").mkdir()
    (tmp_path / "room" / "a" / "b").write_bytes(b"x")
    assert not room.is_too_full()
    (tmp_path / "room" / "a" / "c").write_bytes(bytes(10_000))
    assert room.is_too_full()
    room.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_any_depth_and_mode_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    script = (
        f"import os\nos.chdir({str(tmp_path)!r})\nos.mkdir('room')\nos.chdir('room')\n"
        f"os.symlink({str(outside)!r}, 'l')\n"
        "for _ in range(2000): os.mkdir('a' * 9); os.chdir('a' * 9); open('f', 'w').close()\n"
        "os.mkdir('b', 0); open('c', 'w').close(); os.chmod('.', 0)"
    )
    run_beside_kernel(script)
    rooms.remove_tree(str(tmp_path / "room"))
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert outside.read_text() == "kept"
