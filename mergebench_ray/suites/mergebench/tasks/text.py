"""What the reading, translation and MMLU tasks call."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sacrebleu
from datasets import Dataset
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

Pair = tuple[str, str]
"""Reference and answer."""

_STEM = frozenset(
    {
        "abstract_algebra",
        "anatomy",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    }
)


def only_stem(dataset: Dataset) -> Dataset:
    """The 19 subjects of lm-eval's group `mmlu_stem`."""
    return dataset.filter(lambda item: item["subject"] in _STEM)


def squad(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 against the closest of the answers; a question without one asks for an empty answer."""
    golds = [gold for gold in document["answers"]["text"] if gold] or [""]
    return {
        "exact": float(max(compute_exact(gold, results[0]) for gold in golds)),
        "f1": float(max(compute_f1(gold, results[0]) for gold in golds)),
    }


def bleu_of_translation(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Pair]:
    """A translation beside its reference, for `corpus_bleu`."""
    return {"bleu": (document["translation"]["en"], results[0])}


def bleu_of_code(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Pair]:
    """A line of code beside its reference, for `smoothed_corpus_bleu`."""
    return {"bleu": (document["snippet"], results[0].strip())}


def corpus_bleu(pairs: Sequence[Pair]) -> float:
    """BLEU of all answers together, 0 to 1 (Papineni et al. 2002, by sacreBLEU)."""
    return (
        float(sacrebleu.corpus_bleu([answer for _, answer in pairs], [[reference for reference, _ in pairs]]).score)
        / 100
    )


def smoothed_corpus_bleu(pairs: Sequence[Pair]) -> float:
    """BLEU of all answers together, 0 to 1, each n-gram precision of (matches + 1) / (n-grams + 1), n to 4.

    The smoothing of Lin and Och (2004), unigrams included, which the public harness' BLEU has and sacreBLEU has not.
    """
    tokenize = Tokenizer13a()  # type: ignore[no-untyped-call]
    split = [(tokenize(reference).split(), tokenize(answer).split()) for reference, answer in pairs]
    expected, given = (sum(len(pair[side]) for pair in split) for side in (0, 1))
    if not given:
        return 0.0
    logarithms = []
    for size in range(1, 5):
        matches = sum((_ngrams(answer, size) & _ngrams(reference, size)).total() for reference, answer in split)
        total = sum(max(0, len(answer) - size + 1) for _, answer in split)
        logarithms.append(math.log((matches + 1) / (total + 1)))
    return math.exp(sum(logarithms) / 4 + min(0.0, 1 - expected / given))


def _ngrams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))
