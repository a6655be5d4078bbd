"""Signals end a process in one line; helpers end with the process that began them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_PATIENCE_SECONDS = 60
_BEGIN = """
import signal, sys, time
from mergebench_ray import interrupts
interrupts.install()
"""


def hear_signals() -> None:
    """A shell that runs these tests in the background has children ignore Ctrl-C, `nohup` has them ignore SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def begin(*arguments: str) -> subprocess.Popen[str]:
    """Start Python, or a program given as text, and wait until it prints "ready"."""
    process = subprocess.Popen(
        [sys.executable, *(arguments if arguments[0] == "-m" else ("-c", *arguments))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=_PATIENCE_SECONDS)
    return process.returncode, out, err


def signalled(program: str) -> tuple[int, str, str]:
    """How a program ends that gets SIGTERM once it is ready: status, output, errors."""
    process = begin(_BEGIN + program)
    process.send_signal(signal.SIGTERM)
    return end(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_an_import_ends_in_one_line(number: signal.Signals) -> None:
    process = begin(
        _BEGIN
        + "print('ready', flush=True)\ntry:\n    import torch, ray\nexcept BaseException:\n    pass\ntime.sleep(60)"
    )
    time.sleep(0.3)
    process.send_signal(number)
    assert end(process) == (128 + number, "", "stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_ends_in_one_line(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the place of a slow import.
    (tmp_path / "typer.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    process = begin("-m", "mergebench_ray", "methods")
    process.send_signal(number)
    assert end(process) == (128 + number, "", "stopped\n")


def test_what_must_be_cleaned_up_is_and_a_second_signal_does_not_disturb_it() -> None:
    status, out, err = signalled(
        """
interrupts.clean_up_first()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("cleaning", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("cleaned", flush=True)
    sys.exit(1)
"""
    )
    assert (status, out) == (1, "cleaning\ncleaned\n")
    assert err == "stopping; once more ends at once and leaves unfinished files behind\n"


def test_a_library_that_takes_a_signal_changes_nothing_while_it_starts() -> None:
    assert signalled(
        """
interrupts.clean_up_first()
try:
    with interrupts.kept():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    sys.exit(1)
"""
    ) == (1, "True\n", "")


def test_a_library_that_takes_a_signal_below_python_has_it_no_longer_when_it_has_started() -> None:
    assert signalled(
        """
import faulthandler
interrupts.clean_up_first()
with interrupts.kept():
    faulthandler.register(signal.SIGTERM)
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(1)
"""
    ) == (1, "", "")


def test_a_third_signal_ends_at_once() -> None:
    process = begin(
        _BEGIN
        + """
interrupts.clean_up_first()
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    print("never")
"""
    )
    process.send_signal(signal.SIGINT)
    status, out, err = end(process)
    assert (status, out) == (128 + signal.SIGINT, "")
    assert err.splitlines()[-1] == "stopped"


_SLOWLY = """        print("ready", flush=True)
        time.sleep(60)
"""
# As code made by Cython does where it cannot raise: it prints the exception, and then has it written off.
_PRINTED_FIRST = """        import typer
        sys.excepthook = typer.main.except_hook  # as a command has it
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt as error:
            sys.excepthook(type(error), error, error.__traceback__)
            raise
"""


@pytest.mark.parametrize("body", [_SLOWLY, _PRINTED_FIRST], ids=["Python", "Cython"])
def test_an_interrupt_where_no_exception_can_be_raised_is_not_lost_and_prints_nothing(body: str) -> None:
    process = begin(
        f"""{_BEGIN}
class Slow:
    def __del__(self):
{body}
interrupts.clean_up_first()
try:
    slow = Slow()
    del slow
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    )
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, "interrupted\n", "")


def test_what_a_process_was_started_to_ignore_stays_ignored() -> None:
    process = begin(
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)" + _BEGIN + "print('ready', flush=True)"
    )
    process.send_signal(signal.SIGHUP)
    assert end(process) == (0, "", "")


@pytest.fixture
def helper_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `slow_helper`, which starts a child of its own and writes both their numbers into a file."""
    (tmp_path / "slow_helper.py").write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        "open(sys.argv[1] + '.part', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "os.rename(sys.argv[1] + '.part', sys.argv[1])\n"
        "time.sleep(300)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    yield tmp_path
    # Whatever a failing test leaves.
    for process in _processes(tmp_path):
        process.kill()


def _processes(folder: Path) -> list[psutil.Process]:
    numbers = (folder / "numbers").read_text().split() if (folder / "numbers").exists() else []
    found = []
    for number in numbers:
        try:
            process = psutil.Process(int(number))
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_helper_and_its_children_end_with_the_process_that_began_it(
    helper_module: Path, number: signal.Signals
) -> None:
    numbers = helper_module / "numbers"
    process = begin(
        _BEGIN
        + f"""
import os
from mergebench_ray.helper_process import helper_process
with helper_process("slow_helper", {str(numbers)!r}) as helper:
    while not os.path.exists({str(numbers)!r}):
        time.sleep(0.02)
    print("ready", flush=True)
    helper.wait()
"""
    )
    assert len(_processes(helper_module)) == 2
    process.send_signal(number)
    end(process)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (left := _processes(helper_module)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.ray
@pytest.mark.apart
def test_sigterm_while_ray_works_is_an_interrupt_and_takes_its_processes_along() -> None:
    process = begin(
        _BEGIN
        + """
import ray
from mergebench_ray.runtime import ray_session

@ray.remote(num_cpus=0)
def work():
    time.sleep(300)

try:
    with ray_session(num_cpus=1):
        reference = work.remote()
        print("ready", flush=True)
        ray.get(reference)
except KeyboardInterrupt:
    print("interrupted")
"""
    )
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(signal.SIGTERM)
    status, out, err = end(process)
    assert (status, out) == (0, "interrupted\n")
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(family, timeout=_PATIENCE_SECONDS)
    assert not alive
