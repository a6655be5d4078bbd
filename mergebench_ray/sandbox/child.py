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

import builtins
import contextlib
import gc
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    from mergebench_ray.sandbox import kernel, landlock, system_calls, values
    from mergebench_ray.sandbox import room as rooms
else:
    # The package around this one is out of reach, and must be: its modules would come along into every program.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from sandbox import kernel, landlock, system_calls, values
    from sandbox import room as rooms

    sys.path.pop()
    # A program finds no further module of the folder by way of these.
    sys.modules["sandbox"].__path__ = []

HEADER_BYTES = 512
ESSENTIAL = ("files (Landlock)", "processes and sockets (seccomp)")
"""What a program must be kept from; everything else is a second wall."""
_DESCRIPTORS = 64  # more than a launcher ever has open
_OUTCOME_BYTES = 4096
_REPLY_BYTES = 2**24
_PART_BYTES = 2**16
_MESSAGE_CHARACTERS = 200
_CHECK_MEMORY_BYTES = 2**30  # a check may hold large expected values; it is no stranger's code
_GRACE_SECONDS = 0.5
_LEFT_OUT = {"pyarrow"}  # pandas works without it; its memory and threads do not survive limits and forks
_WATCH_SECONDS = 0.005  # between two looks at a room
_COUNT_SECONDS = 1.0  # between two counts of other processes
_NEW_PROCESSES = 256  # of others, that may begin before the next count
_ENDS = (StopIteration, StopAsyncIteration)
_OUT_OF_TIME = (-signal.SIGXCPU, -signal.SIGKILL)


class ProgramEnded(BaseException):
    """The program's process stopped answering. No `Exception`, so that no check can take it for one of its own."""


class Channel:
    """Lines over a pair of pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, text: str) -> None:
        """Send one line."""
        data = memoryview(text.encode() + b"\n")
        while data:
            data = data[os.write(self._outgoing, data) :]

    def lines(self) -> Iterator[bytes]:
        """The lines of the other side, until it closes its end or sends one that is too long."""
        parts: list[bytes] = []
        size = 0
        while (part := os.read(self._incoming, _PART_BYTES)) and size < _REPLY_BYTES:
            *complete, rest = part.split(b"\n")
            for end in complete:
                yield b"".join([*parts, end])
                parts, size = [], 0
            parts.append(rest)
            size += len(rest)


class Untrusted:
    """The program as the check sees it: each attribute is one of its functions, called in the program's process.

    Arguments and results go by value. An error of a built-in class arrives as that class.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._replies = channel.lines()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            request = values.to_json((name, args, kwargs))
            try:
                self._channel.send(request)
            except BrokenPipeError:
                raise ProgramEnded from None
            return self._result()

        return call

    def _result(self) -> Any:
        reply = next(self._replies, None)
        if reply is None:
            raise ProgramEnded
        try:
            kind, content = values.from_json(reply)
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
            raise ProgramEnded from None
        if kind == "raised":
            name, message = content
            error = getattr(builtins, str(name), None)
            # The end of an iteration would end one of the check's own, such as `map`, before its asserts.
            if isinstance(error, type) and issubclass(error, Exception) and not issubclass(error, _ENDS):
                raise error(message)
            raise RuntimeError(f"{name}: {message}")
        return content


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What this system lets the launcher do to its programs.

    Attributes:
        folder: where they get their rooms.
        readable: folders of packages that they may import, and of what those need.
        user: whom programs and checks run as; None for this process's own user.
        read_any_file: whether they keep the right to read files of all users, within what Landlock allows.
        namespaces: whether the launcher has a process table, network and mounts of its own.
        threads: whether the kernel counts their threads, so that they may start some.
        lacking: what the system does not isolate.
    """

    folder: str
    readable: tuple[str, ...]
    user: int | None
    read_any_file: bool
    namespaces: bool
    threads: bool
    lacking: tuple[str, ...] = ()

    @property
    def shares_user(self) -> bool:
        """Whether the limit on processes counts others too, which are none of the sandbox's."""
        return self.threads and not self.namespaces and self.user in (None, kernel.NOBODY)


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


def find_setup(folder: str, modules: dict[str, str]) -> Setup:
    """Move into namespaces if the system permits them, import packages, and try in forks what else it grants."""
    user = kernel.unprivileged_user()
    namespaces = kernel.enter_namespaces(user)
    kernel.keep_memory_private()
    if not kernel.may_become(user):
        user = None
    if user is not None:
        os.chmod(folder, 0o711)
    readable = import_modules(modules)
    setup = Setup(
        folder=folder,
        readable=readable,
        user=user,
        read_any_file=user is not None and not kernel.can_read(user, (folder, *landlock.libraries(), *readable)),
        namespaces=namespaces,
        threads=kernel.counts_threads(user),
    )
    lacking = [] if namespaces else ["network and process table (namespaces)"]
    with contextlib.suppress(ValueError):  # a machine whose system calls are not listed
        system_calls.prepare(threads=setup.threads)
    found = kernel.in_fork(lambda: isolate(setup, None))
    lacking += ESSENTIAL if found is None else found
    if not setup.threads:
        lacking.append("threads, so that programs may start none (a user other than root)")
    return replace(setup, lacking=tuple(lacking))


def isolate(setup: Setup, room: str | None) -> list[str]:
    """Take from this process every right that the system lets us; return what it did not let us take.

    Args:
        setup: of the launcher.
        room: the one folder in which files may be made and changed; None for nowhere.
    """
    rules = landlock.Confinement(room, setup.readable)
    kernel.give_up_privileges(setup.user, read_any_file=setup.read_any_file)
    refused = (rules.enforce(), system_calls.refuse_system_calls(threads=setup.threads))
    return [name for name, done in zip(ESSENTIAL, refused) if not done]


class Others:
    """Processes of the programs' user that are none of ours, where they share its limit."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._counted_at = -_COUNT_SECONDS
        self._count = 0

    def count(self) -> int:
        """How many there may be while the next program runs."""
        if self._setup.shares_user and time.monotonic() - self._counted_at > _COUNT_SECONDS:
            self._count = kernel.count_processes(self._setup.user) + _NEW_PROCESSES
            self._counted_at = time.monotonic()
        return self._count


def import_modules(modules: dict[str, str]) -> tuple[str, ...]:
    """Import packages that lie outside the standard library, without opening their neighbours to the programs.

    Returns:
        the folders of the packages, and of others from beside them that they needed.
    """
    # Threads would forbid the forks their own: numerical libraries start one per core unless told otherwise.
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ.update(dict.fromkeys(threads, "1"))
    for name in _LEFT_OUT - modules.keys():
        sys.modules[name] = None  # type: ignore[assignment]
    for name, folder in modules.items():
        sys.path.append(folder)
        __import__(name)
        sys.path.pop()
    for name in threads:
        del os.environ[name]
    came = [name for name, module in sys.modules.items() if module is not None and "." not in name]
    beside = {os.path.join(folder, name) for folder in modules.values() for name in came}
    return tuple(sorted(filter(os.path.isdir, beside)))


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


def returned(result: object) -> str:
    """The reply that carries a function's result."""
    try:
        return values.to_json(("returned", result))
    except TypeError:
        return f'{{"tuple": ["returned", {values.other_to_json(result)}]}}'


def raised(error: BaseException) -> str:
    """The reply that carries an error."""
    return values.to_json(("raised", (type(error).__name__, describe(error).partition(": ")[2])))


def describe(error: BaseException) -> str:
    """An error in one short line, even if its class fails to say."""
    name = type(error).__name__
    try:
        text = f"{name}: {error}".split("\n")[0]
    except Exception:
        text = name
    return text[:_MESSAGE_CHARACTERS]


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
