"""The sandbox as root and as an ordinary user, with and without namespaces and Landlock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostile_programs import CHECK, CRIMES, HOSTILE, SECRET
from sandbox_setups import Setup


@pytest.fixture(
    scope="module", params=[Setup(user, namespaces) for user in (False, True) for namespaces in (True, False)], ids=str
)
def setup(request: pytest.FixtureRequest) -> Setup:
    wanted: Setup = request.param
    if missing := wanted.missing():
        pytest.skip(missing)
    return wanted


RUN = """
import json, sys
from sandbox.runner import *
limits = Limits(wall_seconds=5.0)
json.dump([[one.outcome, one.message] for one in run_programs(json.load(sys.stdin), limits=limits)], sys.stdout)
"""


def test_programs_do_what_they_may_in_every_setup(setup: Setup) -> None:
    threads = "import threading\nmine = [threading.Thread(target=print) for _ in range(8)]\n"
    programs = [
        "import decimal, heapq, sqlite3",
        threads + "for one in mine: one.start()\nfor one in mine: one.join()",
        "import os\nopen(os.path.join(os.getcwd(), 'x'), 'w').write('y')\nassert os.listdir() == ['x']",
        "import os; assert os.getuid() != 0",
    ]
    done = setup.run(RUN, json.dumps(programs))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["passed", ""]] * len(programs)


def test_without_landlock_no_program_runs_until_a_weak_sandbox_is_allowed(setup: Setup) -> None:
    script = """
from sandbox.runner import *
print(*weak_points())
try: run_program("1")
except WeakSandboxError as error: print(error)
allow_weak_sandbox(True)
print(run_program("1").outcome)
"""
    done = Setup(setup.user, setup.namespaces, landlock=False).run(script)
    points, refusal, outcome = done.stdout.splitlines()
    assert points == "files (Landlock)"
    assert "cannot guard files (Landlock) on this system" in refusal
    assert outcome == "passed"


COMMANDS = """
import sys
from mergebench_ray.commands.doctor import _sandbox
from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.code_execution import code_execution_notes

suite = Suite.load("smollm2-mini")
print(_sandbox())
for weak in (False, True):
    options = EvaluationOptions(
        domains=["coding"], validation_items=1, allow_code_execution=True, allow_weak_sandbox=weak
    )
    print(*code_execution_notes(suite, options, ["validation"]))
    try:
        task, = load_tasks(suite, "validation", options)
        print(task.batch_scorer([item.doc for item in task.items], [["    pass"]]))
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_commands_say_before_anything_starts_that_the_sandbox_is_weak() -> None:
    setup = Setup(user=False, namespaces=True, landlock=False)
    if missing := setup.missing():
        pytest.skip(missing)
    done = setup.run(COMMANDS)
    assert done.returncode == 0, done.stderr
    doctor, note, refusal, weak_note, scores = done.stdout.splitlines()
    assert "good=False, found='this system cannot guard files (Landlock)'" in doctor
    assert "generated programs are refused on this machine, from which this system cannot guard files" in note
    assert "runs generated programs, from which this system cannot guard files (Landlock); use Linux" in refusal
    assert "evaluation.allow_weak_sandbox: true (--allow-weak-sandbox)" in refusal
    assert "generated programs run in a weak sandbox, from which this system cannot guard files" in weak_note
    assert scores == "[{'score': 0.0}]"


HARNESS = Path(__file__).parents[1].joinpath("support", "hostile_harness.py").read_text()
REFUSALS = ("PermissionError", "FileNotFoundError", "OSError: [Errno", "ValueError: not allowed to raise maximum limit")


@pytest.mark.slow
def test_no_hostile_program_passes_harms_reads_or_outlives(setup: Setup) -> None:
    # Some of what cheats only ends when its time does; the rest takes a moment, or more on a busy machine.
    good = {f"good {number}": (f"def add(a, b): return {SECRET}", CHECK, 30) for number in range(10)}
    cheats = {name: (text, CHECK, 2) for name, text in HOSTILE.items()}
    crimes = {name: (text, "", 30) for name, text in CRIMES.items()}
    assert not cheats.keys() & crimes.keys()
    programs = {**cheats, **crimes, **good}
    done = setup.run(HARNESS, json.dumps(programs), environment={"HOSTILE_SECRET": str(SECRET)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    results = found["results"]
    assert [name for name, (outcome, _) in results.items() if outcome == "passed"] == list(good)
    assert all(message and "\n" not in message for name, (_, message) in results.items() if name not in good)
    # Each crime was refused, not merely written wrongly.
    assert [(name, results[name]) for name in crimes if not results[name][1].startswith(REFUSALS)] == []
    assert found["harm"] == []
    assert found["most_bytes"] < 200 * 2**20
