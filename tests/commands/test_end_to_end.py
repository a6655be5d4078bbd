"""A real search on real weights: stopped with SIGTERM in the middle, resumed to its end.

Killed searches have tests without engines (`test_search_race_tune`), and `benchmarks/chaos.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergebench_ray import InputError, StoppedError, tune
from mergebench_ray.config import Recipe, Suite
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.runs.leaderboard import best_candidate
from mergebench_ray.runs.trials import Trial, read_trials

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1800)]

TRIALS = 3
# Three of the suite's five: as many as the kernels' own tests merge, which need not be compiled again then.
DOMAINS = ["coding", "math", "safety"]
SWEEP = {
    "name": "end-to-end",
    "suite": "smollm2-mini",
    "specialists": {name: Suite.load("smollm2-mini").specialists[name] for name in DOMAINS},
    "methods": {
        "task_arithmetic": {"scaling_coef": {"low": 0.0, "high": 1.2, "per": "specialist"}},
        "ties": {"density": {"low": 0.1, "high": 0.9}, "scaling_coef": {"low": 0.1, "high": 1.2}},
    },
    "search": {
        "trials": TRIALS,
        # The second point is the first again: it must not be scored again.
        "points_to_evaluate": [{"method": "task_arithmetic", "scaling_coef": 0.5}] * 2,
    },
    "evaluation": {"domains": DOMAINS, "validation_items": 2, "test_items": 2, "allow_code_execution": True},
    "bank": {"shards": 2},
    "tracking": "tensorboard",
}
_PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Story:
    """What was seen on the way."""

    run: Path
    trials_after_interrupt: list[Trial]
    status_after_interrupt: int
    output_after_interrupt: str
    left_after_interrupt: list[str]
    finished: bool
    output: str


@pytest.fixture(scope="module")
def story(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("end-to-end")
    (folder / "sweep.yaml").write_text(to_yaml(SWEEP))
    run = folder / "run"

    first = start(folder)
    wait_until(lambda: len(candidates(run)) >= 1, first)
    family = family_of(first)
    # As Ctrl-C, but Ray has a handler of its own for it.
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=_PATIENCE_SECONDS)
    left_after_interrupt = still_there(family)
    after_interrupt = read_trials(run)

    second = tune.start(folder / "sweep.yaml", out=run, resume=True)
    with contextlib.suppress(InputError, StoppedError):
        second.wait(2 * _PATIENCE_SECONDS)
    return Story(
        run=run,
        trials_after_interrupt=after_interrupt,
        status_after_interrupt=first.returncode,
        output_after_interrupt=output,
        left_after_interrupt=left_after_interrupt,
        finished=second.status.state == "finished",
        output=second.log,
    )


def hear_interrupts() -> None:
    """A shell that runs these tests in the background has children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    script = Path(sys.executable).with_name("mergebench-ray")
    return subprocess.Popen(
        [str(script), "tune", "sweep.yaml", "--out", "run", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            for member in [*family_of(process), process]:
                kill(member.pid)
            pytest.fail(f"nothing happened for too long: {process.communicate()[0]}")
        time.sleep(0.2)


def candidates(run: Path) -> list[Trial]:
    return only_candidates(read_trials(run)) if (run / "trials.parquet").exists() else []


def only_candidates(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.role == "candidate" and trial.split == "validation"]


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def still_there(family: list[psutil.Process]) -> list[str]:
    """Names of the processes that are alive half a minute later; ended ones that nobody waited for do not count."""
    deadline = time.monotonic() + 30
    while (alive := [process for process in family if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [process.name() for process in alive]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_sigterm_ends_all_children_in_one_line(story: Story) -> None:
    assert story.status_after_interrupt == 128 + signal.SIGTERM
    assert story.output_after_interrupt.splitlines()[-1] == "stopped"
    assert story.output_after_interrupt.count("stopped") == 1
    assert "--resume" in story.output_after_interrupt
    assert "Traceback" not in story.output_after_interrupt
    assert story.left_after_interrupt == []


def test_no_trial_is_lost_or_repeated_by_an_interrupt(story: Story) -> None:
    assert story.finished, story.output
    final = read_trials(story.run)
    assert only_candidates(story.trials_after_interrupt)
    assert final[: len(story.trials_after_interrupt)] == story.trials_after_interrupt
    found = only_candidates(final)
    assert [trial.number for trial in found] == list(range(TRIALS))
    assert [trial.optuna_number for trial in found] == list(range(TRIALS))
    assert len({trial.key for trial in final}) == len(final)


def test_a_candidate_scored_before_is_not_scored_again(story: Story) -> None:
    first, second, *others = only_candidates(read_trials(story.run))
    assert first.digest == second.digest
    assert second.tokens == 0
    assert second.normalised_average == first.normalised_average
    assert all(trial.tokens > 0 for trial in (first, *others))


def test_each_split_has_its_reference_rows(story: Story) -> None:
    trials = read_trials(story.run)
    for split in ("validation", "test"):
        rows = {(trial.role, trial.name): trial for trial in trials if trial.split == split}
        assert {name for role, name in rows if role == "specialist"} == set(DOMAINS)
        assert sorted(rows["base", "base"].domains) == DOMAINS
        assert rows["average", "plain average"].normalised_average is not None
        for domain in DOMAINS:
            assert list(rows["specialist", domain].domains) == [domain]


def test_items_explain_scores(story: Story) -> None:
    best = best_candidate(read_trials(story.run))
    assert best is not None
    items = pq.read_table(story.run / "items" / f"{best.digest}-validation.parquet").to_pandas()
    for domain, result in best.domains.items():
        assert items[items["domain"] == domain]["score"].mean() == pytest.approx(result.score)


def test_the_search_never_saw_a_test_item(story: Story) -> None:
    items = {
        split: {
            prompt
            for file in (story.run / "items").glob(f"*-{split}.parquet")
            for prompt in pq.read_table(file)["prompt_digest"].to_pylist()
        }
        for split in ("validation", "test")
    }
    assert items["validation"]
    assert items["test"]
    assert not items["validation"] & items["test"]


def test_the_best_model_loads_in_transformers_and_is_what_the_recipe_says(story: Story) -> None:
    folder = story.run / "best" / "model"
    best = best_candidate(read_trials(story.run))
    recipe = Recipe.from_yaml(story.run / "best" / "recipe.yaml")
    assert best is not None
    assert recipe.digest == best.digest
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache is True
    assert tokenizer.chat_template
    output = model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert output.shape[1] > 1
    assert recipe.digest in (folder / "README.md").read_text()
    on_test = next(t for t in read_trials(story.run) if t.digest == recipe.digest and t.split == "test")
    published = {one.dataset_config: one.metric_value for one in ModelCard.load(folder / "README.md").data.eval_results}
    assert published == {domain: result.score for domain, result in on_test.domains.items()}


def test_the_run_tells_what_came_out(story: Story) -> None:
    assert "plain average" in story.output
    assert "vLLM computed" in story.output
    assert (story.run / "report.html").stat().st_size > 100_000
    assert (story.run / "plan.json").exists()


def test_the_tracker_was_told_each_candidate_once_and_then_the_winner(story: Story) -> None:
    events = EventAccumulator(str(story.run / "tensorboard"))  # type: ignore[no-untyped-call]
    events.Reload()  # type: ignore[no-untyped-call]
    found = only_candidates(read_trials(story.run))
    told = {one.step: one.value for one in events.Scalars("normalised_average")}  # type: ignore[no-untyped-call]
    assert told == {trial.number: pytest.approx(trial.normalised_average) for trial in found}
    best = best_candidate(read_trials(story.run))
    assert best is not None
    on_test = next(t for t in read_trials(story.run) if t.digest == best.digest and t.split == "test")
    [winner] = events.Scalars("best/score/math")  # type: ignore[no-untyped-call]
    assert winner.value == pytest.approx(on_test.domains["math"].score)


def test_the_study_names_its_objective_and_says_of_each_trial_what_it_is(story: Story) -> None:
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{story.run / 'study.db'}")
    assert study.metric_names == ["normalised_average"]
    told = {trial.number: trial for trial in study.get_trials(states=[TrialState.COMPLETE])}
    found = {trial.optuna_number: trial for trial in only_candidates(read_trials(story.run))}
    assert told.keys() == found.keys()
    for number, trial in found.items():
        attributes = told[number].user_attrs
        assert (attributes["model"], attributes["digest"]) == (trial.label, trial.digest)
        assert attributes["score.math"] == trial.domains["math"].score
        assert told[number].value == pytest.approx(trial.normalised_average)
