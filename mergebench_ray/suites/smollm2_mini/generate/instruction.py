"""Short writing tasks under constraints that code verifies; an answer counts only if it keeps all of them.

Topics, categories and words belong to one split each; what is shared is the kind of constraint.
"""

from __future__ import annotations

import json
from random import Random

from mergebench_ray.suites.smollm2_mini.generate.common import Draft, Item, Kind, build, share, words
from mergebench_ray.suites.smollm2_mini.generate.constraints import Constraint, holds

TOPICS = words(
    "cats rivers trains gardens songs books clouds bridges horses islands markets dreams lamps robots kites "
    "castles letters stars boats farms mountains dogs holidays forests games paintings bicycles birds cities "
    "windows puzzles rockets spices drums beaches gloves clocks apples roads friends mirrors tents stories "
    "planets coats bakers ships flowers lakes poems"
)
WORDS = words(
    "blue paper tiger happy lemon window silver dance honey river candle yellow pencil summer garden pepper "
    "rabbit button ocean guitar winter orange basket copper dragon mountain velvet pocket thunder cherry meadow "
    "saddle turtle whisper anchor marble feather cotton ginger hammer ladder magnet needle pillow rocket spider "
    "ticket tunnel walnut zebra"
)
CATEGORIES = {
    "colours": "red blue green yellow black white pink brown",
    "animals": "dog cat horse cow lion bear fox wolf",
    "fruits": "apple pear plum banana cherry lemon grape peach",
    "trees": "oak pine birch maple willow cedar elm ash",
    "instruments": "piano guitar violin drum flute harp trumpet cello",
    "sports": "tennis football golf rugby boxing hockey rowing chess",
    "countries": "France Spain Italy Japan Brazil Canada Egypt India",
    "tools": "hammer saw drill wrench pliers chisel file axe",
    "drinks": "water tea coffee milk juice soda wine cocoa",
    "vegetables": "carrot onion pea bean leek potato cabbage spinach",
    "clothes": "shirt coat hat scarf sock glove dress belt",
    "jobs": "baker nurse pilot farmer teacher doctor lawyer painter",
    "birds": "eagle crow robin swan owl duck goose gull",
    "metals": "iron gold silver copper tin lead zinc nickel",
    "rooms": "kitchen bedroom bathroom hall attic cellar office study",
    "insects": "ant bee fly wasp beetle moth cricket flea",
    "vehicles": "car bus train bike truck ship plane tram",
    "flowers": "rose tulip lily daisy poppy iris violet orchid",
    "shapes": "circle square triangle oval cube cone star heart",
    "cities": "Paris Rome Berlin Madrid London Vienna Oslo Athens",
}
SENTENCES = (
    "I like {t}.",
    "We love {t}.",
    "They need {t}.",
    "I often see {t}.",
    "Some {t} are old.",
    "People talk about {t}.",
    "I would like more {t}.",
    "We found {t} last year.",
    "Old {t} can be beautiful.",
    "My family really likes new {t}.",
    "There are many {t} near us.",
    "She told me all about {t}.",
    "I can tell you much about {t}.",
    "We went out to look for {t}.",
    "Most people I know care about {t}.",
    "My friend and I spent a day with {t}.",
    "There is always something new to learn about {t}.",
)
QUESTIONS = ("Do you like {t}?", "Where can I find {t}?", "Why do people want {t}?", "Have you ever seen {t}?")
TITLES = ("The World of {T}", "All About {T}", "A Day with {T}", "My Favourite {T}")
ENDINGS = ("I saw {t} near the {w}.", "We like {t} and the {w}.", "She has {t} but no {w}.")
OPENINGS = ("{W} and {t} go together.", "{W} is what {t} remind me of.", "{W} comes to mind with {t}.")
JOINED = (
    "The {w} is near the {v} and the {t}.",
    "We saw {t}, the {w} and the {v}.",
    "My {w} and my {v} came with {t}.",
)
KEYS = ("name", "size", "price", "place", "year", "owner", "kind", "use", "age", "mood")
VALUES = {
    "name": "{t}",
    "size": "small",
    "price": "low",
    "place": "home",
    "year": "2020",
    "owner": "Anna",
    "kind": "{t}",
    "use": "fun",
    "age": "new",
    "mood": "good",
}


def _draft(instruction: str, answer: str, *constraints: Constraint) -> Draft:
    return Draft(f"Instruction: {instruction}\nResponse:", f" {answer}", json.dumps(constraints))


def _topic(rng: Random, split: str) -> str:
    return rng.choice(share(TOPICS, split))


def _word(rng: Random, split: str) -> str:
    return rng.choice(share(WORDS, split))


def _sentence(rng: Random, topic: str) -> tuple[str, int]:
    text = rng.choice(SENTENCES).format(t=topic)
    return text, len(text.split())


def _category(rng: Random, split: str, count: int) -> tuple[str, list[str]]:
    name = rng.choice(share(tuple(CATEGORIES), split))
    return name, rng.sample(CATEGORIES[name].split(), count)


def _repeat(rng: Random, split: str) -> Draft:
    word, count = _word(rng, split), rng.randint(2, 7)
    text = rng.choice(
        (
            f'Write the word "{word}" exactly {count} times, separated by spaces.',
            f'Repeat "{word}" {count} times with spaces between.',
        )
    )
    return _draft(text, " ".join([word] * count), ("repeated", [word, count]))


def _items(rng: Random, split: str) -> Draft:
    count = rng.randint(2, 6)
    name, chosen = _category(rng, split, count)
    text = rng.choice(
        (f"List exactly {count} {name}, separated by commas.", f"Name {count} {name} in one line with commas.")
    )
    return _draft(text, ", ".join(chosen), ("one_line", []), ("items", [count]))


def _numbered(rng: Random, split: str) -> Draft:
    count = rng.randint(2, 4)
    name, chosen = _category(rng, split, count)
    lines = "\n".join(f"{number}. {item}" for number, item in enumerate(chosen, start=1))
    return _draft(f"Write a numbered list of exactly {count} {name}.", lines, ("numbered", [count]))


def _bullets(rng: Random, split: str) -> Draft:
    count = rng.randint(2, 4)
    name, chosen = _category(rng, split, count)
    lines = "\n".join(f"* {item}" for item in chosen)
    return _draft(f"Write {count} {name} as bullet points that start with *.", lines, ("bullets", [count]))


def _lower(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text, _ = _sentence(rng, topic)
    return _draft(
        f"Write one sentence about {topic} in lowercase letters only.", text.lower(), ("lower", []), ("sentence", [])
    )


def _upper(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text, _ = _sentence(rng, topic)
    return _draft(
        f"Write one sentence about {topic} in capital letters only.", text.upper(), ("upper", []), ("sentence", [])
    )


def _length(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text, count = _sentence(rng, topic)
    return _draft(f"Write a sentence about {topic} with exactly {count} words.", text, ("word_count", [count]))


def _start(rng: Random, split: str) -> Draft:
    topic, word = _topic(rng, split), _word(rng, split)
    text = rng.choice(OPENINGS).format(t=topic, W=word.capitalize())
    return _draft(
        f'Write one sentence about {topic} that starts with the word "{word}".',
        text,
        ("starts", [word]),
        ("sentence", []),
    )


def _end(rng: Random, split: str) -> Draft:
    topic, word = _topic(rng, split), _word(rng, split)
    text = rng.choice(ENDINGS).format(t=topic, w=word)
    return _draft(
        f'Write one sentence about {topic} that ends with the word "{word}".', text, ("ends", [word]), ("sentence", [])
    )


def _include(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    first, second = rng.sample(share(WORDS, split), 2)
    text = rng.choice(JOINED).format(t=topic, w=first, v=second)
    return _draft(
        f'Write one sentence about {topic} with the words "{first}" and "{second}".',
        text,
        ("includes", [first, second]),
        ("sentence", []),
    )


def _letter(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text, _ = _sentence(rng, topic)
    letter = rng.choice([letter for letter in "abcdefghilmnoprtuw" if letter not in text.lower()])
    return _draft(
        f'Write one sentence about {topic} without the letter "{letter}".',
        text,
        ("without", [letter]),
        ("sentence", []),
    )


def _json(rng: Random, split: str) -> Draft:
    topic, keys = _topic(rng, split), rng.sample(KEYS, rng.randint(2, 3))
    names = " and ".join(f'"{key}"' for key in keys)
    answer = json.dumps({key: VALUES[key].format(t=topic) for key in keys})
    return _draft(f"Describe {topic} as JSON with only the keys {names}.", answer, ("json_keys", keys))


def _quoted(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text, _ = _sentence(rng, topic)
    return _draft(
        f"Write one sentence about {topic}, all of it in double quotation marks.",
        f'"{text}"',
        ("wrapped", ['"', '"']),
        ("sentence", []),
    )


def _title(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    left, right = rng.choice((("<<", ">>"), ("[", "]"), ("**", "**"), ("((", "))")))
    text = rng.choice(TITLES).format(T=topic.capitalize())
    return _draft(
        f"Write a title about {topic} between {left} and {right}.", f"{left}{text}{right}", ("wrapped", [left, right])
    )


def _question(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    first = rng.choice(QUESTIONS).format(t=topic)
    return _draft(
        f"Write one question about {topic}. Nothing after the question mark.", first, ("final", ["?"]), ("sentence", [])
    )


def _shout(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text, _ = _sentence(rng, topic)
    return _draft(
        f"Write one sentence about {topic} that ends with an exclamation mark.",
        f"{text[:-1]}!",
        ("final", ["!"]),
        ("sentence", []),
    )


def _alphabetical(rng: Random, split: str) -> Draft:
    words = rng.sample(share(WORDS, split), rng.randint(3, 4))
    return _draft(
        f"Write these words in alphabetical order: {', '.join(words)}.",
        ", ".join(sorted(words)),
        ("exactly", sorted(words)),
    )


def _reverse(rng: Random, split: str) -> Draft:
    words = rng.sample(share(WORDS, split), rng.randint(3, 4))
    return _draft(
        f"Write these words in reverse order: {', '.join(words)}.", ", ".join(words[::-1]), ("exactly", words[::-1])
    )


def _choice(rng: Random, split: str) -> Draft:
    words = rng.sample(share(WORDS, split), 3)
    return _draft(
        f"Choose one of these words and write nothing else: {', '.join(words)}.", rng.choice(words), ("one_of", words)
    )


def _lower_length(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text, count = _sentence(rng, topic)
    return _draft(
        f"Write a sentence about {topic} in lowercase with exactly {count} words.",
        text.lower(),
        ("lower", []),
        ("word_count", [count]),
    )


def _upper_items(rng: Random, split: str) -> Draft:
    count = rng.randint(2, 5)
    name, chosen = _category(rng, split, count)
    return _draft(
        f"List exactly {count} {name} in capital letters, separated by commas.",
        ", ".join(chosen).upper(),
        ("upper", []),
        ("items", [count]),
    )


def _quoted_question(rng: Random, split: str) -> Draft:
    topic = _topic(rng, split)
    text = rng.choice(QUESTIONS).format(t=topic)
    return _draft(
        f"Write one question about {topic} in double quotation marks.",
        f'"{text}"',
        ("wrapped", ['"', '"']),
        ("final", ['?"']),
        ("sentence", []),
    )


KINDS: dict[str, Kind] = {
    "repeat": _repeat,
    "items": _items,
    "numbered": _numbered,
    "bullets": _bullets,
    "lower": _lower,
    "upper": _upper,
    "length": _length,
    "start": _start,
    "end": _end,
    "include": _include,
    "letter": _letter,
    "json": _json,
    "quoted": _quoted,
    "title": _title,
    "question": _question,
    "shout": _shout,
    "alphabetical": _alphabetical,
    "reverse": _reverse,
    "choice": _choice,
    "lower_length": _lower_length,
    "upper_items": _upper_items,
    "quoted_question": _quoted_question,
}


def items(split: str, size: int | None = None) -> list[Item]:
    """Return the tasks of one split."""
    return build("instruction", split, KINDS, size)


def score(item: Item, answer: str) -> float:
    """Return 1.0 if the answer keeps every constraint of the item."""
    return float(holds(answer, [(name, arguments) for name, arguments in json.loads(item["check"])]))
