"""Small lm-eval tasks written into a folder: real YAML and JSON files, as a user would have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mergebench_ray.config import Suite

CAPITALS = [
    ("France", "Paris"),
    ("Japan", "Tokyo"),
    ("Italy", "Rome"),
    ("Spain", "Madrid"),
    ("Russia", "Moscow"),
    ("Germany", "Berlin"),
    ("Egypt", "Cairo"),
    ("Greece", "Athens"),
    ("China", "Beijing"),
    ("England", "London"),
    ("Poland", "Warsaw"),
    ("Austria", "Vienna"),
]

TEXTS = ("The sea is blue.", "Rivers flow to the sea, and clouds come from it.", "Snow falls on high mountains.")


def capital_items(start: int, count: int) -> list[dict[str, Any]]:
    """Questions about capitals, each with four choices."""
    names = [city for _, city in CAPITALS]
    items = []
    for number in range(start, start + count):
        country, city = CAPITALS[number]
        others = [name for name in names if name != city][number % 8 :][:3]
        items.append(
            {"id": f"capital-{number}", "country": country, "city": city, "choices": [*others, city], "gold": 3}
        )
    return items


def write_lines(file: Path, items: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def write_task(folder: Path, name: str, **settings: Any) -> None:
    """A task file over `folder`'s own JSON lines; `settings` replace or add keys, None removes one."""
    data = {
        "train": folder / "train.jsonl",
        "validation": folder / "validation.jsonl",
        "test": folder / "test.jsonl",
    }
    for split, (start, count) in {"train": (0, 2), "validation": (2, 4), "test": (6, 6)}.items():
        if not data[split].exists():
            write_lines(data[split], capital_items(start, count))
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in data.items()}},
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "The capital of {{country}} is",
        "doc_to_target": "{{city}}",
        "metadata": {"version": 1.0},
        **settings,
    }
    config = {key: value for key, value in config.items() if value is not None}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def write_choice_task(folder: Path, name: str = "capital_choice", **settings: Any) -> None:
    """Four capitals to choose from, by log-likelihood."""
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    write_task(
        folder,
        name,
        **{
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": metrics,
            **settings,
        },
    )


def write_generation_task(folder: Path, name: str = "capital_text", **settings: Any) -> None:
    """The capital's name, generated, the first word of the answer compared exactly."""
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}
    first_word = {
        "name": "first-word",
        "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}],
    }
    whole = {"name": "whole", "filter": [{"function": "take_first"}]}
    write_task(
        folder,
        name,
        **{
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 6, "temperature": 0.0, "do_sample": False},
            "filter_list": [first_word, whole],
            "metric_list": [metric],
            **settings,
        },
    )


def write_text_task(folder: Path, name: str = "texts", texts: Sequence[str] = TEXTS, **settings: Any) -> None:
    """Whole texts, by log-likelihood; the first also stand in the other splits."""
    for split in ("train", "validation", "test"):
        some = texts if split == "test" else texts[:2]
        write_lines(folder / f"{split}.jsonl", [{"page": text} for text in some])
    metrics = [{"metric": metric} for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    kind: dict[str, Any] = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}"}
    write_task(folder, name, **{**kind, "metric_list": metrics, **settings})


def write_suite(folder: Path, domains: dict[str, dict[str, Any]], max_model_len: int = 256) -> Suite:
    """A suite file beside its tasks, read back as a user's would be."""
    file = folder / "suite.yaml"
    content = {
        "name": "small",
        "tasks_folder": "tasks",
        "domains": {domain: {"tasks": tasks} for domain, tasks in domains.items()},
        "max_model_len": max_model_len,
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return Suite.load(str(file))
