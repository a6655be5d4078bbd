"""Word problems of one or two steps with a whole-number answer.

Names and things belong to one split each, and of every kind one wording is kept from training. The gold answer is the
worked line and then the result after `####`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from mergebench_ray.suites.smollm2_mini.generate.common import Draft, Item, Kind, build, share, words

NAMES = words(
    "Ana Ben Clara David Eva Finn Greta Hugo Ida Jonas Kira Leo Mara Nils Olga Paul Rosa Sven Tara Uma Victor "
    "Wanda Yara Zoe Adam Bella Carl Dora Emil Frida Gus Hana Ivan Julia Karl Lina Max Nora Oscar Petra"
)
THINGS = words(
    "apples pencils marbles stamps coins shells cookies books stickers cards balloons oranges buttons stones "
    "tickets ribbons flowers bottles eggs candles plums badges beads toys spoons cups nails keys postcards "
    "pears lemons crayons magnets tulips peaches muffins pebbles feathers bolts walnuts"
)
HOLDERS = words("boxes bags baskets shelves trays jars drawers crates rows packets bowls cases sacks tins tables racks")

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_RESULT = re.compile(r"####\s*(-?\d[\d,]*(?:\.\d+)?)")

Steps = tuple[dict[str, int], list[str], int]


def _plus(a: int, b: int) -> str:
    return f"{a} + {b} = {a + b}"


def _minus(a: int, b: int) -> str:
    return f"{a} - {b} = {a - b}"


def _times(a: int, b: int) -> str:
    return f"{a} * {b} = {a * b}"


def _over(a: int, b: int) -> str:
    return f"{a} / {b} = {a // b}"


def _sum(rng: Random) -> Steps:
    a, b = rng.randint(3, 60), rng.randint(3, 39)
    return {"a": a, "b": b}, [_plus(a, b)], a + b


def _difference(rng: Random) -> Steps:
    a, b = rng.randint(12, 80), rng.randint(3, 11)
    return {"a": a, "b": b, "c": a - b}, [_minus(a, b)], a - b


def _product(rng: Random) -> Steps:
    a, b = rng.randint(2, 10), rng.randint(2, 10)
    return {"a": a, "b": b}, [_times(a, b)], a * b


def _quotient(rng: Random) -> Steps:
    b, q = rng.randint(2, 9), rng.randint(2, 10)
    return {"a": b * q, "b": b}, [_over(b * q, b)], q


def _sum_difference(rng: Random) -> Steps:
    a, b = rng.randint(10, 40), rng.randint(5, 30)
    c = rng.randint(2, 9)
    return {"a": a, "b": b, "c": c}, [_plus(a, b), _minus(a + b, c)], a + b - c


def _product_sum(rng: Random) -> Steps:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 15)
    return {"a": a, "b": b, "c": c}, [_times(a, b), _plus(a * b, c)], a * b + c


def _product_difference(rng: Random) -> Steps:
    a, b = rng.randint(3, 9), rng.randint(3, 9)
    c = rng.randint(2, 8)
    return {"a": a, "b": b, "c": c}, [_times(a, b), _minus(a * b, c)], a * b - c


def _rest_shared(rng: Random) -> Steps:
    c, q, b = rng.randint(2, 6), rng.randint(2, 9), rng.randint(2, 9)
    a = c * q + b
    return {"a": a, "b": b, "c": c}, [_minus(a, b), _over(c * q, c)], q


def _compared_total(rng: Random) -> Steps:
    a, b = rng.randint(3, 30), rng.randint(2, 15)
    return {"a": a, "b": b}, [_plus(a, b), _plus(a, a + b)], 2 * a + b


def _twice_total(rng: Random) -> Steps:
    a = rng.randint(2, 30)
    return {"a": a}, [_times(2, a), _plus(a, 2 * a)], 3 * a


def _half_plus(rng: Random) -> Steps:
    a, b = 2 * rng.randint(2, 20), rng.randint(2, 15)
    return {"a": a, "b": b}, [_over(a, 2), _plus(a // 2, b)], a // 2 + b


def _change(rng: Random) -> Steps:
    a, b, c = rng.randint(2, 9), rng.randint(2, 5), rng.choice((50, 60, 80, 100))
    return {"a": a, "b": b, "c": c}, [_times(a, b), _minus(c, a * b)], c - a * b


def _week(rng: Random) -> Steps:
    a = rng.randint(2, 12)
    return {"a": a}, [_times(a, 7)], a * 7


def _younger(rng: Random) -> Steps:
    a, b, c = rng.randint(20, 50), rng.randint(2, 9), rng.randint(2, 9)
    return {"a": a, "b": b, "c": c}, [_minus(a, b), _plus(a - b, c)], a - b + c


# name of the kind: (numbers, wordings); the last wording of each is never trained on.
_KINDS: dict[str, tuple[Callable[[Random], Steps], tuple[str, str, str]]] = {
    "gain": (
        _sum,
        (
            "{n} has {a} {o}. {m} gives {n} {b} more. How many {o} does {n} have now?",
            "{n} had {a} {o} and then bought {b} {o}. How many {o} does {n} have in all?",
            "After finding {b} {o}, {n}, who had {a} before, counts them all. What is the count?",
        ),
    ),
    "loss": (
        _difference,
        (
            "{n} has {a} {o} and loses {b} of them. How many {o} are left?",
            "There were {a} {o}. {n} took {b} away. How many {o} remain?",
            "{n} starts the day with {a} {o} and gives {b} of them to {m}. How many does {n} keep?",
        ),
    ),
    "groups": (
        _product,
        (
            "There are {a} {h} with {b} {o} in each. How many {o} are there?",
            "{n} fills {a} {h} with {b} {o} each. How many {o} does {n} use?",
            "Each of the {a} {h} holds {b} {o}. How many {o} do they hold together?",
        ),
    ),
    "sharing": (
        _quotient,
        (
            "{n} shares {a} {o} equally among {b} friends. How many {o} does each friend get?",
            "{a} {o} are put into {b} {h}, the same number in each. How many {o} are in each?",
            "If {b} children divide {a} {o} evenly, how many {o} does one child receive?",
        ),
    ),
    "comparison": (
        _sum,
        (
            "{n} has {a} {o}. {m} has {b} more {o} than {n}. How many {o} does {m} have?",
            "{m} owns {b} {o} more than {n}, who owns {a}. How many {o} does {m} own?",
            "{n} counted {a} {o} and {m} counted {b} more than that. How many did {m} count?",
        ),
    ),
    "unknown_start": (
        _difference,
        (
            "{n} had some {o}, got {b} more and now has {a}. How many {o} did {n} have first?",
            "{n} has {a} {o} now, after buying {b}. How many {o} were there before?",
            "With {b} new {o}, {n} has {a} in total. How many {o} are old?",
        ),
    ),
    "price": (
        _product,
        (
            "One ticket costs {a} dollars. How many dollars does {n} pay for {b} tickets?",
            "{n} buys {b} hats at {a} dollars each. How much does {n} pay in dollars?",
            "At {a} dollars a lamp, how many dollars do {b} lamps cost?",
        ),
    ),
    "change": (
        _change,
        (
            "{n} buys {b} pens at {a} dollars each and pays with {c} dollars. How much change does {n} get?",
            "{n} has {c} dollars and buys {b} caps for {a} dollars each. How many dollars are left?",
            "From {c} dollars {n} pays for {b} mugs of {a} dollars each. How much money remains?",
        ),
    ),
    "gain_then_loss": (
        _sum_difference,
        (
            "{n} has {a} {o}, finds {b} more and gives {c} to {m}. How many {o} does {n} have?",
            "A shop had {a} {o}, received {b} and sold {c}. How many {o} are left?",
            "{a} {o} and {b} {o} are put together, then {c} are removed. How many {o} stay?",
        ),
    ),
    "groups_and_more": (
        _product_sum,
        (
            "{n} has {a} {h} with {b} {o} each and {c} loose {o}. How many {o} in all?",
            "There are {a} {h} of {b} {o} and {c} {o} on the floor. How many {o} are there?",
            "{m} packs {a} {h}, {b} {o} in each, and {c} {o} do not fit. How many {o} does {m} have?",
        ),
    ),
    "groups_and_less": (
        _product_difference,
        (
            "{n} has {a} {h} with {b} {o} each. {c} {o} break. How many {o} are whole?",
            "{n} buys {a} {h} of {b} {o} and uses {c} {o}. How many {o} remain?",
            "From {a} {h} with {b} {o} each, {m} removes {c} {o}. How many {o} are still there?",
        ),
    ),
    "rest_shared": (
        _rest_shared,
        (
            "{n} has {a} {o}, keeps {b} and shares the rest among {c} friends. How many {o} does each get?",
            "Of {a} {o}, {b} are bad. The others go into {c} {h} evenly. How many {o} are in each?",
            "{m} sets {b} of {a} {o} aside and splits the others into {c} equal parts. How many are in a part?",
        ),
    ),
    "more_together": (
        _compared_total,
        (
            "{n} has {a} {o} and {m} has {b} more than {n}. How many {o} do they have together?",
            "{m} has {b} more {o} than {n}. {n} has {a}. How many {o} have both in total?",
            "{n} brought {a} {o}, {m} brought {b} more than {n}. How many {o} did the two bring?",
        ),
    ),
    "twice_together": (
        _twice_total,
        (
            "{n} has {a} {o}. {m} has twice as many. How many {o} do they have together?",
            "{m} has two times as many {o} as {n}, who has {a}. How many {o} in total?",
            "{n} made {a} {o} and {m} made double that. How many {o} did both make?",
        ),
    ),
    "half_and_more": (
        _half_plus,
        (
            "{n} gives away half of {a} {o} and then gets {b} more. How many {o} does {n} have?",
            "Half of {n}'s {a} {o} are lost, then {n} finds {b}. How many {o} does {n} have now?",
            "{m} eats half of the {a} {o} and buys {b} new ones. How many {o} does {m} have?",
        ),
    ),
    "week": (
        _week,
        (
            "{n} reads {a} pages every day. How many pages does {n} read in one week?",
            "A machine makes {a} {o} a day. How many {o} does it make in a week?",
            "{n} walks {a} miles daily. How many miles is that in seven days?",
        ),
    ),
    "ages": (
        _younger,
        (
            "{n} is {a} years old. {m} is {b} years younger. How old will {m} be in {c} years?",
            "{m} is {b} years younger than {n}, who is {a}. How old is {m} in {c} years?",
            "{n} is {a}, and {m} was born {b} years later. What will the age of {m} be after {c} years?",
        ),
    ),
    "journey": (
        _product_sum,
        (
            "{n} rides {a} miles an hour for {b} hours and then {c} miles more. How many miles in all?",
            "A bus drives {b} hours at {a} miles an hour, then {c} miles. How many miles does it drive?",
            "For {b} hours {n} hikes {a} miles each hour, and at the end {c} more. How long is the way in miles?",
        ),
    ),
}


def _kind(numbers: Callable[[Random], Steps], wordings: tuple[str, str, str]) -> Kind:
    def draw(rng: Random, split: str) -> Draft:
        values, lines, result = numbers(rng)
        first, second = rng.sample(share(NAMES, split), 2)
        things, holders = rng.choice(share(THINGS, split)), rng.choice(share(HOLDERS, split))
        wording = rng.choice(wordings[:2] if split == "train" else wordings)
        question = wording.format(n=first, m=second, o=things, h=holders, **values)
        return Draft(f"Question: {question}\nAnswer:", f" {', '.join(lines)} #### {result}", str(result))

    return draw


KINDS: dict[str, Kind] = {name: _kind(*parts) for name, parts in _KINDS.items()}


def items(split: str, size: int | None = None) -> list[Item]:
    """Return the problems of one split."""
    return build("math", split, KINDS, size)


def score(item: Item, answer: str) -> float:
    """Return 1.0 if the result is right: the number after `####`, or else the last number of the first line."""
    marked = _RESULT.search(answer)
    lines = answer.strip().splitlines()
    numbers = [marked.group(1)] if marked else _NUMBER.findall(lines[0] if lines else "")
    if not numbers:
        return 0.0
    return float(float(numbers[-1].replace(",", "")) == float(item["check"]))
