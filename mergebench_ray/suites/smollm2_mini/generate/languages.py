"""A small lexicon of English, French, Spanish, German and Russian, and the grammar that its sentences need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mergebench_ray.suites.smollm2_mini.generate.common import words

Noun = tuple[str, str]
"""A noun without article, and its gender: m, f or n."""
Adjective = tuple[str, str, str]
"""Masculine, feminine and neuter form."""


@dataclass(frozen=True)
class Language:
    """Words in one fixed order, the same in every language, and how they combine."""

    code: str
    name: str
    subjects: tuple[str, ...]
    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    nouns: tuple[Noun, ...]
    adjectives: tuple[Adjective, ...]
    sentence: Callable[[str, str, str, bool], str]
    phrase: Callable[[Noun, Adjective], str]
    number: Callable[[int], str]


def _form(noun: Noun, adjective: Adjective) -> str:
    return adjective["mfn".index(noun[1])]


def _same(*words: str) -> tuple[Adjective, ...]:
    return tuple((word, word, word) for word in words)


def _genders(*pairs: str) -> tuple[Adjective, ...]:
    split = [pair.split("/") for pair in pairs]
    return tuple((forms[0], forms[-1] if len(forms) < 3 else forms[1], forms[-1]) for forms in split)


def _nouns(text: str) -> tuple[Noun, ...]:
    return tuple((word[:-2], word[-1]) for word in text.split())


def _english_sentence(subject: str, verb: str, thing: str, negative: bool) -> str:
    if not negative:
        return f"{subject} {verb} {thing}"
    stem = verb[:-2] if verb.endswith("shes") else verb[:-1]
    return f"{subject} does not {stem} {thing}"


def _french_sentence(subject: str, verb: str, thing: str, negative: bool) -> str:
    if not negative:
        return f"{subject} {verb} {thing}"
    particle = "n'" if verb[0] in "aeiou" else "ne "
    return f"{subject} {particle}{verb} pas {thing}"


def _spanish_sentence(subject: str, verb: str, thing: str, negative: bool) -> str:
    return f"{subject} {'no ' if negative else ''}{verb} {thing}"


def _german_sentence(subject: str, verb: str, thing: str, negative: bool) -> str:
    return f"{subject} {verb} {thing}{' nicht' if negative else ''}"


def _russian_sentence(subject: str, verb: str, thing: str, negative: bool) -> str:
    return f"{subject} {'не ' if negative else ''}{verb} {thing}"


def _english_phrase(noun: Noun, adjective: Adjective) -> str:
    return f"the {adjective[0]} {noun[0]}"


def _french_phrase(noun: Noun, adjective: Adjective) -> str:
    article = "la" if noun[1] == "f" else "le"
    form = _form(noun, adjective)
    vowel = noun[0][0] in "aeiou"
    if adjective[0] in ("petit", "grand", "vieux"):
        return f"{article} {'vieil' if vowel and form == 'vieux' else form} {noun[0]}"
    return f"l'{noun[0]} {form}" if vowel else f"{article} {noun[0]} {form}"


def _spanish_phrase(noun: Noun, adjective: Adjective) -> str:
    return f"{'la' if noun[1] == 'f' else 'el'} {noun[0]} {_form(noun, adjective)}"


def _german_phrase(noun: Noun, adjective: Adjective) -> str:
    article = {"m": "der", "f": "die", "n": "das"}[noun[1]]
    return f"{article} {adjective[0]} {noun[0]}"


def _russian_phrase(noun: Noun, adjective: Adjective) -> str:
    return f"{_form(noun, adjective)} {noun[0]}"


_EN_ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_EN_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
_FR_ONES = words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf"
)
_FR_TENS = words("vingt trente quarante cinquante soixante")
_ES_ONES = words(
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis "
    "veintisiete veintiocho veintinueve"
)
_ES_TENS = words("treinta cuarenta cincuenta sesenta setenta ochenta noventa")
_DE_ONES = words(
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
)
_DE_TENS = words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
_RU_ONES = words(
    "ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать тринадцать "
    "четырнадцать пятнадцать шестнадцать семнадцать восемнадцать девятнадцать"
)
_RU_TENS = words("двадцать тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто")


def _composed(number: int, ones: tuple[str, ...], tens: tuple[str, ...], joint: str) -> str:
    if number < len(ones):
        return ones[number]
    ten, one = divmod(number, 10)
    word = tens[ten - len(ones) // 10]
    return f"{word}{joint}{ones[one]}" if one else word


def _english_number(number: int) -> str:
    return _composed(number, _EN_ONES, _EN_TENS, "-")


def _french_number(number: int) -> str:
    if number < 20:
        return _FR_ONES[number]
    if number >= 80:
        return "quatre-vingts" if number == 80 else f"quatre-vingt-{_FR_ONES[number - 80]}"
    ten, one = (6, number - 60) if number >= 60 else divmod(number, 10)
    word = _FR_TENS[ten - 2]
    if not one:
        return word
    return f"{word} et {_FR_ONES[one]}" if one in (1, 11) else f"{word}-{_FR_ONES[one]}"


def _spanish_number(number: int) -> str:
    return _composed(number, _ES_ONES, _ES_TENS, " y ")


def _german_number(number: int) -> str:
    if number < 20:
        return _DE_ONES[number]
    ten, one = divmod(number, 10)
    word = _DE_TENS[ten - 2]
    return f"{'ein' if one == 1 else _DE_ONES[one]}und{word}" if one else word


def _russian_number(number: int) -> str:
    return _composed(number, _RU_ONES, _RU_TENS, " ")


ENGLISH = Language(
    code="en",
    name="English",
    subjects=("the boy", "the girl", "the man", "the woman", "my father", "my mother", "the dog", "the teacher"),
    verbs=("sees", "loves", "buys", "draws", "finds", "washes"),
    objects=(
        "the house",
        "the book",
        "the bread",
        "the apple",
        "the car",
        "the tree",
        "the flower",
        "the window",
        "the letter",
        "the milk",
    ),
    nouns=_nouns("house:n book:n bread:n apple:n car:n tree:n flower:n window:n letter:n milk:n"),
    adjectives=_same("white", "black", "red", "green", "small", "big", "new", "old"),
    sentence=_english_sentence,
    phrase=_english_phrase,
    number=_english_number,
)
FRENCH = Language(
    code="fr",
    name="French",
    subjects=("le garçon", "la fille", "l'homme", "la femme", "mon père", "ma mère", "le chien", "le professeur"),
    verbs=("voit", "aime", "achète", "dessine", "trouve", "lave"),
    objects=(
        "la maison",
        "le livre",
        "le pain",
        "la pomme",
        "la voiture",
        "l'arbre",
        "la fleur",
        "la fenêtre",
        "la lettre",
        "le lait",
    ),
    nouns=_nouns("maison:f livre:m pain:m pomme:f voiture:f arbre:m fleur:f fenêtre:f lettre:f lait:m"),
    adjectives=_genders(
        "blanc/blanche",
        "noir/noire",
        "rouge",
        "vert/verte",
        "petit/petite",
        "grand/grande",
        "neuf/neuve",
        "vieux/vieille",
    ),
    sentence=_french_sentence,
    phrase=_french_phrase,
    number=_french_number,
)
SPANISH = Language(
    code="es",
    name="Spanish",
    subjects=("el niño", "la niña", "el hombre", "la mujer", "mi padre", "mi madre", "el perro", "el profesor"),
    verbs=("ve", "ama", "compra", "dibuja", "encuentra", "lava"),
    objects=(
        "la casa",
        "el libro",
        "el pan",
        "la manzana",
        "el coche",
        "el árbol",
        "la flor",
        "la ventana",
        "la carta",
        "la leche",
    ),
    nouns=_nouns("casa:f libro:m pan:m manzana:f coche:m árbol:m flor:f ventana:f carta:f leche:f"),
    adjectives=_genders(
        "blanco/blanca", "negro/negra", "rojo/roja", "verde", "pequeño/pequeña", "grande", "nuevo/nueva", "viejo/vieja"
    ),
    sentence=_spanish_sentence,
    phrase=_spanish_phrase,
    number=_spanish_number,
)
GERMAN = Language(
    code="de",
    name="German",
    subjects=(
        "der Junge",
        "das Mädchen",
        "der Mann",
        "die Frau",
        "mein Vater",
        "meine Mutter",
        "der Hund",
        "der Lehrer",
    ),
    verbs=("sieht", "liebt", "kauft", "zeichnet", "findet", "wäscht"),
    objects=(
        "das Haus",
        "das Buch",
        "das Brot",
        "den Apfel",
        "das Auto",
        "den Baum",
        "die Blume",
        "das Fenster",
        "den Brief",
        "die Milch",
    ),
    nouns=_nouns("Haus:n Buch:n Brot:n Apfel:m Auto:n Baum:m Blume:f Fenster:n Brief:m Milch:f"),
    adjectives=_same("weiße", "schwarze", "rote", "grüne", "kleine", "große", "neue", "alte"),
    sentence=_german_sentence,
    phrase=_german_phrase,
    number=_german_number,
)
RUSSIAN = Language(
    code="ru",
    name="Russian",
    subjects=("мальчик", "девочка", "мужчина", "женщина", "мой отец", "моя мать", "собака", "учитель"),
    verbs=("видит", "любит", "покупает", "рисует", "находит", "моет"),
    objects=("дом", "книгу", "хлеб", "яблоко", "машину", "дерево", "цветок", "окно", "письмо", "молоко"),
    nouns=_nouns("дом:m книга:f хлеб:m яблоко:n машина:f дерево:n цветок:m окно:n письмо:n молоко:n"),
    adjectives=_genders(
        "белый/белая/белое",
        "чёрный/чёрная/чёрное",
        "красный/красная/красное",
        "зелёный/зелёная/зелёное",
        "маленький/маленькая/маленькое",
        "большой/большая/большое",
        "новый/новая/новое",
        "старый/старая/старое",
    ),
    sentence=_russian_sentence,
    phrase=_russian_phrase,
    number=_russian_number,
)
LANGUAGES = (FRENCH, SPANISH, GERMAN, RUSSIAN)
