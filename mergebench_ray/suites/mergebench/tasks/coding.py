"""What the coding tasks call: programs made of a prompt and an answer, run against EvalPlus' checks in the sandbox."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from mergebench_ray.sandbox.runner import Limits, Program, check_of, run_programs
from mergebench_ray.suites.pass_at_k import pass_at_k

# Those of the public harness. Some checks hold thousands of cases, and compare with NumPy.
_HUMANEVAL_SECONDS, _MBPP_SECONDS = 20, 10
# Checks need NumPy, which every program may import; pandas takes a second to import, for those that name it.
_MODULES, _RARE_MODULES = ("numpy",), ("pandas",)


def all_samples(answers: Sequence[Sequence[str]], _documents: object) -> list[list[list[str]]]:
    """The answer filter: keeps every sample of an item."""
    return [[list(samples)] for samples in answers]


def score(documents: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[Any]]) -> list[dict[str, float]]:
    """Run every sample of every item; pass@1 by item.

    Args:
        documents: items of HumanEval+ (`prompt`, `test`, `entry_point`) or MBPP+ (`prompt`, `test_list`, `test`).
        answers: by item, a list that holds the list of samples.
    """
    samples = [_flatten(given) for given in answers]
    seconds = _HUMANEVAL_SECONDS if all("entry_point" in document for document in documents) else _MBPP_SECONDS
    limits = Limits(wall_seconds=seconds, cpu_seconds=seconds, memory_bytes=2**30)
    programs = [
        program(document, answer) for document, given in zip(documents, samples, strict=True) for answer in given
    ]
    rare = [name for name in _RARE_MODULES if find_spec(name) and any(name in one.text for one in programs)]
    passed = iter(result.passed for result in run_programs(programs, limits=limits, modules=[*_MODULES, *rare]))
    return [{"pass_at_1": pass_at_k(len(given), sum(next(passed) for _ in given), 1)} for given in samples]


def score_one(document: Mapping[str, Any], answers: Sequence[Any]) -> dict[str, float]:
    """The same for one item."""
    return score([document], [answers])[0]


def program(document: Mapping[str, Any], answer: str) -> Program:
    """The program of one sample and its check, which gets from the program whatever it uses and does not define."""
    check = str(document["test"])
    if "entry_point" in document:
        text = document["prompt"].strip() + answer
        check += f"\n\ncheck({document['entry_point']})\n"
    else:
        text = answer
    return Program(text, check_of(check, *free_names(check)))


def free_names(source: str) -> list[str]:
    """Names that a program text uses and binds nowhere, builtins apart."""
    used: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return sorted(used - bound)


def _flatten(answers: Sequence[Any]) -> list[str]:
    return [text for one in answers for text in ([one] if isinstance(one, str) else _flatten(one))]
