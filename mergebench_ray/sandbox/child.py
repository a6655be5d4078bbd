"""The inside of the sandbox: a launcher that forks twice for each program, and what the two forks do.

Run as a file by `python -I -S`; it imports nothing but its neighbours in this folder. Forking a small process that
has its imports behind it takes milliseconds, a new interpreter for each program many times that.

For each job the launcher forks a *checker*, which reads the program, forks the *program's process*, and only then reads
the check. So no memory of the program's process ever held the check, its expected values or the outcome's pipe. The
check calls the program's functions over a pair of pipes that carry plain data, and the checker alone says how it ended.

Jobs come on standard input: a header of `HEADER_BYTES` (JSON, padded), then the program, then the check. Answers leave
on standard output, a line of JSON each. The launcher itself reads only headers.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    from mergebench_ray.sandbox import kernel, values
    from mergebench_ray.sandbox import room as rooms
    from mergebench_ray.sandbox.setup import ESSENTIAL, Others, Setup, find_setup, isolate
    from mergebench_ray.sandbox.untrusted import Channel, ProgramEnded, Untrusted, describe, raised, returned
else:
    # The package around this one is out of reach, and must be: its modules would come along into every program.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from sandbox import kernel, values
    from sandbox import room as rooms
    from sandbox.setup import ESSENTIAL, Others, Setup, find_setup, isolate
    from sandbox.untrusted import Channel, ProgramEnded, Untrusted, describe, raised, returned

    sys.path.pop()
    # A program finds no further module of the folder by way of these.
    sys.modules["sandbox"].__path__ = []

HEADER_BYTES = 512
_DESCRIPTORS = 64  # more than a launcher ever has open
_OUTCOME_BYTES = 4096
_CHECK_MEMORY_BYTES = 2**30  # a check may hold large expected values; it is no stranger's code
_GRACE_SECONDS = 0.5
_WATCH_SECONDS = 0.005  # between two looks at a room
_OUT_OF_TIME = (-signal.SIGXCPU, -signal.SIGKILL)


def main() -> None:
    """Serve jobs until standard input ends. Arguments: a folder to work in, packages to import first and where."""
    folder, modules = sys.argv[1], json.loads(sys.argv[2])
    os.environ.pop("MALLOC_ARENA_MAX", None)  # it has had its effect
    kernel.adopt_orphans()
    setup = find_setup(folder, modules)
    answer({"lacking": setup.lacking, "weak": [name for name in setup.lacking if name in ESSENTIAL]})
    others = Others(setup)
    gc.freeze()  # or every program would look through, and so copy, all that was imported here
    while header := read_exactly(HEADER_BYTES):
        job = json.loads(header)
        job["processes"] += others.count()
        room = rooms.Room(os.path.join(folder, "room"), job["folder_bytes"], owner=setup.user, mounts=setup.namespaces)
        result = run_job(job, setup, room)
        room.close()
        answer(result)
    rooms.remove_tree(folder)  # whoever started this may have been killed


def run_job(job: dict[str, Any], setup: Setup, room: rooms.Room) -> dict[str, str]:
    """Run one program and its check; whatever happens, all of their processes are dead afterwards."""
    reading, writing = os.pipe()
    checker = os.fork()
    if checker == 0:
        try:
            check_program(job, setup, room.folder, writing)
        finally:
            os._exit(1)
    os.close(writing)
    written = read_outcome(reading, time.monotonic() + job["wall_seconds"], room)
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(checker, signal.SIGKILL)  # all there is, where the kernel module finds no grandchildren
    status = kernel.end_descendants()[checker]
    if isinstance(written, bytes) and written:
        return dict(json.loads(written))
    if written == "too full":
        return failed("wrote more than its folder may hold")
    if written == "late" or status in _OUT_OF_TIME:
        return {"outcome": "timed_out", "message": "ran longer than its limit"}
    # Not the program's doing, and perhaps part of the job is still unread: the next one takes a new launcher.
    raise SystemExit(f"the checker ended with status {status}")


def read_outcome(descriptor: int, deadline: float, room: rooms.Room) -> bytes | Literal["late", "too full"]:
    """What the checker wrote until it ended, or why it had to be ended."""
    written = b""
    while True:
        remaining = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([descriptor], [], [], min(remaining, _WATCH_SECONDS) if room.watched else remaining)
        if ready:
            part = os.read(descriptor, _OUTCOME_BYTES)
            if not part:
                return written
            written += part
        elif room.watched and room.is_too_full():
            return "too full"
        elif time.monotonic() >= deadline:
            return "late"


def check_program(job: dict[str, Any], setup: Setup, room: str, answer: int) -> NoReturn:
    """The checker: start the program's process, then read the check, run it, and write how it ended."""
    os.setsid()
    kernel.die_with_parent()
    program = read_exactly(job["program_bytes"]).decode()
    requests, replies = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        try:
            serve_program(job, setup, room, program, requests[0], replies[1])
        finally:
            os._exit(1)
    check = read_exactly(job["check_bytes"]).decode()
    keep_only(answer, replies[0], requests[1])
    limit({**job, "memory_bytes": max(job["memory_bytes"], _CHECK_MEMORY_BYTES)})
    isolate(setup, None)
    outcome = run_check(check, Untrusted(Channel(replies[0], requests[1])), process)
    os.write(answer, json.dumps(outcome).encode())
    os._exit(0)


def run_check(check: str, program: Untrusted, process: int) -> dict[str, str]:
    """How the check ended."""
    try:
        program._result()  # the program has reached its last line
        exec(compile(check, "check", "exec"), {"__name__": "check", "untrusted": program})
    except ProgramEnded:
        status = wait_briefly(process)
        if status in _OUT_OF_TIME:
            return {"outcome": "timed_out", "message": "ran longer than its limit"}
        return failed("stopped answering" if status is None else f"ended early with status {status}")
    except BaseException as error:
        return failed(describe(error))
    return {"outcome": "passed", "message": ""}


def serve_program(job: dict[str, Any], setup: Setup, room: str, program: str, requests: int, replies: int) -> NoReturn:
    """The program's process: give up all rights, run the program, then answer calls of its functions."""
    keep_only(requests, replies)
    os.chdir(room)
    limit(job)
    if not set(isolate(setup, room)) <= set(setup.lacking):
        os._exit(1)
    channel = Channel(requests, replies)
    namespace: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(program, "program", "exec"), namespace)
        reply = values.to_json(("returned", None))
    except BaseException as error:
        reply = raised(error)
    channel.send(reply)
    for line in channel.lines():
        name, args, kwargs = values.from_json(line)
        try:
            reply = returned(namespace[name](*args, **kwargs))
        except BaseException as error:
            reply = raised(error)
        channel.send(reply)
    os._exit(0)


def failed(message: str) -> dict[str, str]:
    """The outcome of a program that did something wrong."""
    return {"outcome": "failed", "message": message}


def wait_briefly(process: int) -> int | None:
    """Exit status of a child, negative for a signal; None if it goes on living."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def limit(job: dict[str, Any]) -> None:
    """Lower this process's limits to the job's."""
    names = ("cpu_seconds", "memory_bytes", "file_bytes", "processes", "open_files")
    kernel.set_limits(**{name: job[name] for name in names})


def keep_only(*kept: int) -> None:
    """Close every descriptor but these; the standard streams lead nowhere."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    for descriptor in set(range(3, _DESCRIPTORS)) - set(kept):
        os.closerange(descriptor, descriptor + 1)


def read_exactly(num_bytes: int) -> bytes:
    """So many bytes of standard input; nothing where it ends. Unbuffered, as several processes share it."""
    parts = []
    while num_bytes and (part := os.read(0, num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


def answer(result: dict[str, Any]) -> None:
    """Write one line for the process that started this one."""
    os.write(1, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    main()
