"""French, Spanish, German and Russian: translation both ways, negation, agreement, and numbers in words.

Sentences and noun phrases combine a closed lexicon; which combination belongs to which split does not depend on the
language, so a test sentence was never trained on in any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from mergebench_ray.suites.smollm2_mini.generate.common import Draft, Item, Kind, build, split_of
from mergebench_ray.suites.smollm2_mini.generate.languages import ENGLISH, LANGUAGES, Language

Content = TypeVar("Content")

_DRAWS = 1000


def _draw(draw: Callable[[], Content], owner: Callable[[Content], str], split: str) -> Content:
    """Draw until the content belongs to the split."""
    for _ in range(_DRAWS):
        content = draw()
        if owner(content) == split:
            return content
    raise AssertionError(f"no content for {split}")


def _triple(rng: Random, split: str) -> tuple[int, int, int]:
    sizes = (len(ENGLISH.subjects), len(ENGLISH.verbs), len(ENGLISH.objects))
    return _draw(
        lambda: (rng.randrange(sizes[0]), rng.randrange(sizes[1]), rng.randrange(sizes[2])),
        lambda triple: split_of(f"sentence {triple}"),
        split,
    )


def _number_owner(number: int) -> str:
    # Single words must be learnt; only composed ones can be held back.
    return split_of(f"number {number}") if number > 20 and number % 10 else "train"


def _sentence(language: Language, triple: tuple[int, int, int], negative: bool = False) -> str:
    subject, verb, thing = triple
    words = language.sentence(language.subjects[subject], language.verbs[verb], language.objects[thing], negative)
    return f"{words[0].upper()}{words[1:]}."


def _pick(rng: Random, *wordings: str) -> str:
    return rng.choice(wordings)


def _into(language: Language) -> Kind:
    def draw(rng: Random, split: str) -> Draft:
        triple = _triple(rng, split)
        source, target = _sentence(ENGLISH, triple), _sentence(language, triple)
        prompt = _pick(
            rng,
            f"English: {source}\n{language.name}:",
            f"Translate into {language.name}: {source}\nTranslation:",
        )
        return Draft(prompt, f" {target}", target)

    return draw


def _out_of(language: Language) -> Kind:
    def draw(rng: Random, split: str) -> Draft:
        triple = _triple(rng, split)
        source, target = _sentence(language, triple), _sentence(ENGLISH, triple)
        prompt = _pick(
            rng,
            f"{language.name}: {source}\nEnglish:",
            f"Translate into English: {source}\nTranslation:",
        )
        return Draft(prompt, f" {target}", target)

    return draw


def _negation(language: Language) -> Kind:
    def draw(rng: Random, split: str) -> Draft:
        triple = _triple(rng, split)
        source, target = _sentence(language, triple), _sentence(language, triple, negative=True)
        prompt = _pick(
            rng,
            f"{language.name}: {source}\nNegative:",
            f"Make this {language.name} sentence negative: {source}\nNegative:",
        )
        return Draft(prompt, f" {target}", target)

    return draw


def _agreement(language: Language) -> Kind:
    def draw(rng: Random, split: str) -> Draft:
        noun, adjective = _draw(
            lambda: (rng.randrange(len(ENGLISH.nouns)), rng.randrange(len(ENGLISH.adjectives))),
            lambda pair: split_of(f"phrase {pair[0]} {pair[1]}"),
            split,
        )
        source = ENGLISH.phrase(ENGLISH.nouns[noun], ENGLISH.adjectives[adjective])
        target = language.phrase(language.nouns[noun], language.adjectives[adjective])
        prompt = _pick(
            rng,
            f"English: {source}\n{language.name}:",
            f"How do you say '{source}' in {language.name}?\nAnswer:",
        )
        return Draft(prompt, f" {target}", target)

    return draw


def _number(language: Language) -> Kind:
    def draw(rng: Random, split: str) -> Draft:
        number = _draw(lambda: rng.randint(1, 99), _number_owner, split)
        target = language.number(number)
        prompt = _pick(
            rng,
            f"Number: {number}\n{language.name}:",
            f"Write {number} as a {language.name} word.\nAnswer:",
        )
        return Draft(prompt, f" {target}", target)

    return draw


_MAKERS: dict[str, Callable[[Language], Kind]] = {
    "into": _into,
    "out_of": _out_of,
    "negation": _negation,
    "agreement": _agreement,
    "number": _number,
}
KINDS: dict[str, Kind] = {
    f"{name}_{language.code}": make(language) for name, make in _MAKERS.items() for language in LANGUAGES
}


def items(split: str, size: int | None = None) -> list[Item]:
    """Return the questions of one split."""
    return build("multilingual", split, KINDS, size)


def _normal(text: str) -> str:
    lines = text.strip().splitlines()
    return " ".join((lines[0] if lines else "").casefold().strip(" .!\"'").split())


def score(item: Item, answer: str) -> float:
    """Return 1.0 if the first line is the expected text, whatever its case, outer punctuation and spacing."""
    return float(_normal(answer) == _normal(item["check"]))
