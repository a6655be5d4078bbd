"""Programs written to cheat or to do harm: none passes, none harms, and the pool goes on.

None of them contains a right `add`, so one that passes has forged its verdict. Limits are low.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergebench_ray.evaluation import sandbox_kernel
from mergebench_ray.evaluation.sandbox import Limits, Program, SandboxPool, check_of, weak_points

QUICK = Limits(wall_seconds=2.0, cpu_seconds=1, processes=64)
SECRET = 48_611_793
CHECK = check_of(f"expected = {SECRET}\nassert add(1, 2) == expected", "add")
FILES = sorted(Path(sandbox_kernel.__file__).parent.glob("sandbox*.py"))

HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory bomb": "x = []\nwhile True:\n    x.append(bytearray(10**7))",
    "endless loop": "while True: pass",
    "sleeper": "import time; time.sleep(60)",
    "huge output": "while True: print('x' * 10**6)",
    "huge file": "open('x', 'wb').write(b'x' * 10**8)",
    "many files": "n = 0\nwhile True:\n    open(str(n), 'wb').write(b'x' * 10**6); n += 1",
    "os._exit before the check": "import os; os._exit(0)",
    "sys.exit before the check": "import sys; sys.exit(0)",
    "os._exit within the check": "import os\ndef add(a, b): os._exit(0)",
    "printed pass": (
        'import os\nprint(\'{"verdict": "passed", "message": ""}\', flush=True)\n'
        'os.write(1, b\'{"verdict": "passed", "message": ""}\\n\')\nos._exit(0)'
    ),
    "pass written into every descriptor": (
        "import os\nfor n in range(64):\n"
        '    try: os.write(n, b\'{"verdict": "passed", "message": ""}\\n\')\n'
        "    except OSError: pass\nos._exit(0)"
    ),
    "replies written in advance": (
        "import os\nfor n in range(64):\n"
        '    try: os.write(n, b\'{"tuple": ["returned", null]}\\n\' * 9)\n'
        "    except OSError: pass\ndef add(a, b): return None"
    ),
    "malformed replies": (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'[' * 60000 + b'\\n')\n    except OSError: pass"
    ),
    "endless reply": "def add(a, b): return 'x' * 10**8",
    "descriptors read": (
        "import os, re\nfound = b''\nfor n in range(64):\n"
        "    try:\n        os.set_blocking(n, False)\n        found += os.read(n, 10**6)\n    except OSError: pass\n"
        "def add(a, b): return int(re.search(rb'expected = (\\d+)', found)[1])"
    ),
    "objects and frames searched": (
        "import gc, re, sys\ndef add(a, b):\n    things, frame = gc.get_objects(), sys._getframe()\n"
        "    while frame:\n        things.append(dict(frame.f_locals)); frame = frame.f_back\n"
        "    for thing in things:\n"
        "        for text in gc.get_referents(thing):\n"
        "            found = re.search(r'expected = (\\d+)', text) if type(text) is str else None\n"
        "            if found: return int(found[1])"
    ),
    "parent's memory read": (
        "import os\ndef add(a, b):\n    maps = open(f'/proc/{os.getppid()}/maps').read()\n"
        "    return int(open(f'/proc/{os.getppid()}/mem', 'rb').read(1))"
    ),
    "parent's descriptors opened": (
        "import os\nfor n in range(64):\n"
        '    try: open(f\'/proc/{os.getppid()}/fd/{n}\', \'w\').write(\'{"verdict": "passed", "message": ""}\')\n'
        "    except OSError: pass"
    ),
    "parent traced": (
        "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0\nwhile True: pass"
    ),
    "parent killed": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)",
    "checker's modules changed": (
        "import sys\nfor module in list(sys.modules.values()):\n"
        "    for name in list(vars(module)):\n"
        "        if name in ('from_json', '_decode', 'run_check', 'failed', 'describe'):\n"
        '            setattr(module, name, lambda *_: {"verdict": "passed", "message": ""})'
    ),
    "checker's files changed": "\n".join(
        f"try: open({str(path)!r}, 'a').write('broken(')\nexcept OSError: pass" for path in FILES
    ),
    "assert and equality disarmed": (
        "import builtins\nbuiltins.AssertionError = builtins.Exception = type('Calm', (BaseException,), {})\n"
        "class Yes(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "def add(a, b): return Yes()"
    ),
    "own folder removed": "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)\nos.rmdir(os.getcwd())",
    "link to a file outside": "import os\nos.symlink('/etc/passwd', 'link')\nopen('link').read()",
    "daemon left behind": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n"
        "    os._exit(0)\nos._exit(0)"
    ),
    "limits raised": (
        "import resource\nfor limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):\n"
        "    resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    ),
    "limits of the parent lowered": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))\nwhile True: pass"
    ),
    "socket": "import socket\nsocket.create_connection(('127.0.0.1', 1))",
    "streams closed": "import os, sys\nsys.stdout.close(); sys.stderr.close()\nos.closerange(0, 64)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
    "deep result": "x = []\nfor _ in range(10**5): x = [x]\ndef add(a, b): return x",
    "killed itself": "import os; os.abort()",
    "address zero read": "import ctypes; ctypes.string_at(0)",
}


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    with SandboxPool(limits=QUICK) as pool:
        yield pool


def test_no_hostile_program_passes_and_the_pool_goes_on() -> None:
    files = [path.read_bytes() for path in FILES]
    good = Program(f"def add(a, b): return {SECRET}", CHECK)
    with SandboxPool(limits=QUICK) as pool:
        futures = {name: pool.submit(Program(text, CHECK)) for name, text in HOSTILE.items()}
        among = [pool.submit(good) for _ in range(20)]
        passed = [name for name, future in futures.items() if future.result().passed]
        assert passed == []
        assert all(future.result().passed for future in among)
        folders = [Path(launcher._folder.name) for launcher in pool._launchers]
        assert [list(folder.iterdir()) for folder in folders] == [[]] * len(folders)
    messages = [future.result().message for future in futures.values()]
    assert all(message and "\n" not in message for message in messages)
    assert [path.read_bytes() for path in FILES] == files


def run_beside_kernel(script: str) -> str:
    """Output of a script that can import the sandbox's modules, in a process that it may take rights from."""
    command = [sys.executable, "-c", script]
    environment = {"PYTHONPATH": str(FILES[0].parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def kernel_lacks() -> str:
    script = "import sandbox_child as c, tempfile; print(*c.find_setup(tempfile.mkdtemp(), {}).lacking, sep='; ')"
    return run_beside_kernel(script)


LACKING = kernel_lacks()
needs_filters = pytest.mark.skipif(bool(weak_points()), reason=f"this system lacks {LACKING}: only limits protect here")
needs_namespaces = pytest.mark.skipif("namespaces" in LACKING, reason="this system permits no user namespaces")


@needs_filters
@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "import subprocess; subprocess.run(['ls'])",
        "import os; os.execv('/bin/ls', ['ls'])",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.killpg(0, 9)",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
        "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (0, 0))",
        "import os; os.listdir('/proc')",
        "open('/proc/self/environ')",
        "open('/proc/self/mem', 'r+b')",
        "open('/dev/tty', 'w')",
    ],
)
def test_a_program_cannot_reach_network_processes_or_system(attempt: str, pool: SandboxPool) -> None:
    result = pool.submit(attempt).result()
    assert result.verdict == "failed"
    assert "PermissionError" in result.message


@needs_filters
@pytest.mark.parametrize(
    "attempt",
    [
        "open({path!r})",
        "open({path!r}, 'w')",
        "import os; os.remove({path!r})",
        "import os; os.rename({path!r}, 'mine')",
        "import os; os.link({path!r}, 'mine')",
        "import os; os.symlink({path!r}, 'mine'); open('mine', 'a')",
        "import os; os.chmod({path!r}, 0)",
        "import os; os.truncate({path!r}, 0)",
        "import os; os.utime({path!r}, (0, 0))",
        "import os; os.listdir(os.path.dirname({path!r}))",
        "open({path!r} + '.new', 'w')",
        "open('/dev/shm/sandbox-test', 'w')",
    ],
)
def test_a_program_cannot_read_or_change_files_outside_its_folder(
    attempt: str, tmp_path: Path, pool: SandboxPool
) -> None:
    file = tmp_path / "precious"
    file.write_text("kept")
    before = file.stat()
    message = pool.submit(attempt.format(path=str(file))).result().message
    assert "PermissionError" in message or "cross-device link" in message
    assert file.read_text() == "kept"
    assert (file.stat().st_mode, file.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_program_holds_no_descriptor_but_its_streams_and_its_two_pipes(pool: SandboxPool) -> None:
    program = (
        "import os, stat\nopen_ones = []\nfor n in range(1024):\n"
        "    try: open_ones.append((n, stat.S_ISFIFO(os.fstat(n).st_mode)))\n    except OSError: pass\n"
        "assert [n for n, pipe in open_ones if not pipe] == [0, 1, 2], open_ones\n"
        "assert len(open_ones) == 5, open_ones"
    )
    assert pool.submit(program).result().message == ""


DAEMON = """
import os, sandbox_kernel as k, time
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


@pytest.mark.skipif(not sandbox_kernel.LINUX, reason="orphans are adopted on Linux only")
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
            f"import socket, sandbox_kernel as k; k.enter_namespaces()\ntry: {connect}\nexcept OSError: print('not')"
        )
        assert run_beside_kernel(script) == "not\n"


def test_nothing_remains_when_the_process_that_owns_the_pool_is_killed() -> None:
    script = "import os, sandbox; pool = sandbox.SandboxPool(num_workers=1); assert pool.submit('1').result().passed\n"
    script += "launcher = pool._launchers[0]; print(launcher._process.pid, launcher._folder.name, flush=True)\n"
    pid, folder = run_beside_kernel(script + "os._exit(0)").split()
    deadline = time.monotonic() + 20.0
    while (Path(folder).exists() or Path("/proc", pid).exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(folder).exists()
    assert not Path("/proc", pid).exists()
