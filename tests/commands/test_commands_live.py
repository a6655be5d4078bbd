from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from made_up_trials import for_worst_domain, made_up_trials
from mergebench_ray.commands.live import LiveView
from mergebench_ray.runs.leaderboard import best_candidate
from mergebench_ray.scores import ObjectiveEstimate

RUN = """
import sys, time
from made_up_trials import made_up_trials
from mergebench_ray.commands.live import LiveView
with LiveView("run", 14) as view:
    view.phase("starting vLLM (about 30 s)")
    for trial in made_up_trials(2)[8:10]:
        view.trial_started(trial.number)
        view.trial_finished(trial, trial)
    print("a log line", flush=True)
    view.phase("waiting")
    time.sleep(float(sys.argv[1]))
    view.finished(["best: ties #1"])
"""


def test_piped_output_is_one_plain_line_per_phase_and_finished_trial() -> None:
    out = io.StringIO()
    trials = [trial for trial in made_up_trials(4, test=False) if trial.role == "candidate"]
    with LiveView("run", 4, console=Console(file=out, width=80)) as view:
        view.phase("starting vLLM (about 30 s)")
        view.phase("starting vLLM (about 30 s)")
        for index, trial in enumerate(trials):
            view.trial_started(trial.number)
            view.trial_finished(trial, best_candidate(trials[: index + 1]))
        view.finished(["best: [x] ties"])
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 4 + 1
    assert lines[0].endswith("starting vLLM (about 30 s)")
    assert "4/4" in lines[4]
    assert all(f"{domain} " in lines[4] for domain in trials[0].domains)
    assert "tokens/s" in lines[4]
    assert "best 0." in lines[4]
    assert lines[5] == "best: [x] ties"
    assert "\x1b" not in out.getvalue()


def test_the_view_shows_what_is_searched_for_and_who_does_not_keep_the_constraints() -> None:
    trials = [trial for trial in for_worst_domain(made_up_trials(4, test=False)) if trial.role == "candidate"]
    outside = next(trial for trial in trials if trial.missed)
    lines, panel = io.StringIO(), io.StringIO()
    with LiveView("run", 4, console=Console(file=lines, width=80)) as view:
        view.trial_finished(outside, best_candidate(trials))
        Console(file=panel, width=200).print(view._panel())
    assert f"{outside.objective.value:.3f} ± 0.050 | misses safety >= 0.9" in lines.getvalue()
    assert "worst domain" in panel.getvalue()
    assert f"{outside.label}, misses safety >= 0.9" in panel.getvalue()


def test_a_stopped_candidate_is_shown_with_what_is_guessed_of_it_and_counts_as_done() -> None:
    trial = next(trial for trial in made_up_trials(4, test=False) if trial.role == "candidate")
    estimate = ObjectiveEstimate(0.4321, 0.05, 20, 320)
    stopped = replace(trial, role="stopped", objectives={}, normalised_average=None, estimate=estimate)
    lines, panel = io.StringIO(), io.StringIO()
    with LiveView("run", 4, console=Console(file=lines, width=80)) as view:
        view.search_begins(1)
        view.trial_finished(stopped, trial)
        Console(file=panel, width=200).print(view._panel())
    assert "stopped after 20 of 320 items, about 0.432 ± 0.050" in lines.getvalue()
    assert "2/4" in lines.getvalue()
    assert "2 of 4 candidates" in panel.getvalue()


def test_without_a_known_end_it_says_how_many_came_and_no_time_left() -> None:
    trial = next(trial for trial in made_up_trials(4, test=False) if trial.role == "candidate")
    lines, panel = io.StringIO(), io.StringIO()
    with LiveView("run", None, console=Console(file=lines, width=80)) as view:
        view.search_begins(2)
        view.trial_started(2)
        Console(file=panel, width=200).print(view._panel())
        view.trial_finished(trial, trial)
        Console(file=panel, width=200).print(view._panel())
    assert "scoring candidate 3\n" in "\n".join(line.rstrip() for line in panel.getvalue().splitlines()) + "\n"
    assert "3 candidates" in panel.getvalue()
    assert "left" not in panel.getvalue() + lines.getvalue()


def test_the_last_candidate_is_the_last_of_all() -> None:
    view = LiveView("run", 3, show=False)
    for number, said in enumerate(("1 of 3", "2 of 3", "3 of 3")):
        view.trial_started(number)
        assert view._phase == f"scoring candidate {said}"


def test_nothing_is_printed_when_not_wanted() -> None:
    out = io.StringIO()
    with LiveView("run", 1, show=False, console=Console(file=out, force_terminal=True)) as view:
        view.phase("loading")
        view.finished(["done"])
    assert out.getvalue() == ""


def _on_a_terminal(seconds: float, interrupt: bool) -> str:
    """Run `RUN` on a pseudo-terminal; what it printed."""
    leader, follower = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1] / "support"),
        "TERM": "xterm",
        "COLUMNS": "120",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(seconds)],
        stdout=follower,
        stderr=follower,
        env=environment,
        # A shell that runs these tests in the background has children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(follower)
    text, sent = b"", False
    while True:
        try:
            text += os.read(leader, 65536)
        except OSError:
            break
        if interrupt and not sent and b"waiting" in text:
            process.send_signal(signal.SIGINT)
            sent = True
    process.wait()
    os.close(leader)
    return text.decode()


@pytest.mark.parametrize("interrupt", [False, True])
def test_terminal_is_sane_afterwards_even_after_ctrl_c(interrupt: bool) -> None:
    text = _on_a_terminal(60 if interrupt else 0.5, interrupt)
    assert "a log line" in text
    assert "best so far" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is hidden once and shown again once"
    assert ("best: ties #1" in text) is not interrupt


@pytest.mark.parametrize("is_terminal", [False, True])
def test_without_being_asked_it_shows_itself_where_somebody_looks(is_terminal: bool) -> None:
    out = io.StringIO()
    with LiveView("run", 1, show=None, console=Console(file=out, force_terminal=is_terminal)) as view:
        view.phase("loading")
        view.finished(["done"])
    assert ("done" in out.getvalue()) is is_terminal
