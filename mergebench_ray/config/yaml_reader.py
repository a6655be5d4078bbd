"""YAML 1.2 as people write it, in bounded time and memory.

PyYAML reads YAML 1.1, where ``2e-1`` is text, ``no`` is false, ``12:30`` is 750 and ``2024-01-01`` an object. Here
numbers and booleans are those of YAML 1.2's core schema, keys are text, and merge keys (``<<``) work. Refused: a key
that is given twice, tags that make objects, and what takes more time or memory than any file of ours.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 10 << 20
_MAX_DEPTH = 50
_MAX_ENTRIES = 100_000  # with every alias counted as what it stands for
_CHARACTERS_AN_ENTRY = 256  # a long text counts as many entries
_MAX_DIGITS = 300  # a longer integer is beyond any float

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WORDS = {"null": re.compile("null|Null|NULL|~|"), "bool": re.compile("true|True|TRUE|false|False|FALSE")}
# Written by libyaml's parser where PyYAML was built with it: ten times faster.
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YAMLReadError(Exception):
    """Why a text is not what is read here; `line` counts from 1, 0 where it is not known."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(" ".join(problem.split()))
        self.line = line


class _Loader(_Parser):  # type: ignore[misc]
    """Knows the scalars of the core schema, lists and mappings, and nothing else."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    yaml_multi_constructors: ClassVar[dict[Any, Any]] = {}
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def construct_key(self, node: Node) -> str:
        """A key's text, whatever else it could be read as."""
        return str(node.value)

    def construct_pairs_of(self, node: MappingNode) -> dict[str, Any]:
        """A mapping; keys of its own replace those that it merges."""
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag != _MERGE:
                own[self.construct_key(key)] = self.construct_object(value, deep=True)
                continue
            # Of several that are merged, the first one's values count.
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                merged = {**self.construct_object(source, deep=True), **merged}
        return {**merged, **own}


def _construct_int(loader: Any, node: Node) -> int:
    digits = str(node.value)
    if len(digits) > _MAX_DIGITS:
        raise _problem(f"a number of {len(digits)} digits", node)
    try:
        return int(digits, 0) if digits.startswith(("0o", "0x")) else int(digits)
    except ValueError:
        raise _problem(f"{digits!r} is not an integer", node) from None


def _construct_float(loader: Any, node: Node) -> float:
    text = str(node.value).lower().replace(".inf", "inf").replace(".nan", "nan")
    try:
        return float(text)
    except ValueError:
        raise _problem(f"{node.value!r} is not a number", node) from None


def _construct_bool(loader: Any, node: Node) -> bool:
    if _WORDS["bool"].fullmatch(node.value) is None:
        raise _problem(f"{node.value!r} is not true or false", node)
    return bool(node.value.lower() == "true")


def _construct_list(loader: Any, node: SequenceNode) -> list[Any]:
    return [loader.construct_object(one, deep=True) for one in node.value]


def _construct_unknown(loader: Any, node: Node) -> Any:
    raise _problem(f"could not determine a constructor for the tag {node.tag!r}", node)


def _set_up() -> None:
    of_kind: dict[Any, dict[str, Any]] = {
        ScalarNode: {
            "null": lambda _loader, _node: None,
            "bool": _construct_bool,
            "int": _construct_int,
            "float": _construct_float,
            "str": lambda _loader, node: str(node.value),
        },
        SequenceNode: {"seq": _construct_list},
        MappingNode: {"map": lambda loader, node: loader.construct_pairs_of(node)},
    }

    def for_kind(kind: type[Node], construct: Any) -> Any:
        return lambda loader, node: (construct if isinstance(node, kind) else _construct_unknown)(loader, node)

    for kind, constructors in of_kind.items():
        for name, construct in constructors.items():
            _Loader.add_constructor(_TAG + name, for_kind(kind, construct))
    _Loader.add_constructor(None, _construct_unknown)
    numbers = list("-+.0123456789")
    # The first that matches counts.
    for name, pattern, first in (
        ("merge", "<<", ["<"]),
        ("null", _WORDS["null"].pattern, ["~", "n", "N", ""]),
        ("bool", _WORDS["bool"].pattern, list("tTfF")),
        ("int", _INT.pattern, numbers),
        ("float", _FLOAT.pattern, numbers),
    ):
        _Loader.add_implicit_resolver(_TAG + name, re.compile(f"(?:{pattern})$"), first)


_set_up()


def load_yaml(text: str) -> Any:
    """The one document of a text, as plain values.

    Raises:
        YAMLReadError: if it is not YAML, or is refused.
    """
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _weigh(node, set(), {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML"
        raise YAMLReadError(problem, mark.line + 1 if mark else 0) from error
    except UnicodeEncodeError as error:  # half of a surrogate pair, from an operating system's arguments
        raise YAMLReadError(f"not text ({error.reason})") from error


def _check_depth(text: str) -> None:
    """Refuse deep nesting before libyaml's composer recurses into it, and with it the process's stack."""
    depth = 0
    for entries, event in enumerate(yaml.parse(text, Loader=_Parser)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise _problem(f"nested deeper than {_MAX_DEPTH} levels", event)
        if entries > 2 * _MAX_ENTRIES:
            raise _problem(f"more than {_MAX_ENTRIES} entries", event)


def _weigh(node: Node, above: set[int], weights: dict[int, int]) -> int:
    """Entries of a node, aliases counted as what they stand for; refuses what could not be read back as plain data."""
    if id(node) in weights:
        return weights[id(node)]
    if id(node) in above:
        raise _problem("an alias to what it stands in", node)
    weight = 1
    if isinstance(node, ScalarNode):
        weight += len(node.value) // _CHARACTERS_AN_ENTRY
    elif isinstance(node, CollectionNode):
        if isinstance(node, MappingNode):
            _check_keys(node)
        children = [one for pair in node.value for one in pair] if isinstance(node, MappingNode) else node.value
        inside = above | {id(node)}
        weight += sum(_weigh(child, inside, weights) for child in children)
    if weight > _MAX_ENTRIES:
        raise _problem(f"more than {_MAX_ENTRIES} entries, aliases counted as what they stand for", node)
    weights[id(node)] = weight
    return weight


def _check_keys(node: MappingNode) -> None:
    seen = set()
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise _problem("a key that is a list or mapping", key)
        if key.tag not in {_TAG + name for name in ("merge", "null", "bool", "int", "float", "str")}:
            _construct_unknown(None, key)
        if (key.tag == _MERGE, key.value) in seen:
            raise _problem(f"key {key.value!r:.80} is given twice", key)
        seen.add((key.tag == _MERGE, key.value))
        sources = value.value if isinstance(value, SequenceNode) else [value]
        if key.tag == _MERGE and not all(isinstance(one, MappingNode) for one in sources):
            raise _problem("'<<' takes a mapping, or a list of mappings", value)


def _problem(text: str, node: Any) -> YAMLReadError:
    return YAMLReadError(text, node.start_mark.line + 1)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal values are written out each time."""
        return True


# Adding one to a class of PyYAML copies its parent's.
for _tag, _pattern in (("float", _FLOAT), ("int", _INT)):
    _Dumper.add_implicit_resolver(_TAG + _tag, re.compile(f"(?:{_pattern.pattern})$"), list("-+.0123456789"))


def dump_yaml(data: Any) -> str:
    """YAML text in the order of the mappings."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
