"""Plain data as JSON text and back: what crosses between a program and the process that checks it.

Only data crosses, never objects with a behaviour of their own: a class whose `__eq__` always agrees arrives as
something that equals nothing. Imported by the sandbox's own small interpreter: standard library only.
"""

from __future__ import annotations

import json
import numbers
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_PLAIN = (bool, str, float)
_ARRAY_KINDS = "biufcSU"  # NumPy's booleans, numbers and texts
_JSON_INTEGER_BITS = 63
_NAME_CHARACTERS = 50

_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "Decimal": Decimal,
    "Fraction": Fraction,
    "bytes": bytes.fromhex,
    "range": lambda parts: range(*parts),
    "tuple": lambda items: tuple(map(_decode, items)),
    "set": lambda items: set(map(_decode, items)),
    "frozenset": lambda items: frozenset(map(_decode, items)),
    "dict": lambda pairs: {_decode(key): _decode(value) for key, value in pairs},
    "array": lambda parts: _decode_array(*parts),
    "other": lambda name: OtherValue(str(name)),
}


class OtherValue:
    """Stands for a value that is no plain data; equal to nothing but itself."""

    def __init__(self, type_name: str) -> None:
        self._type_name = type_name[:_NAME_CHARACTERS]

    def __repr__(self) -> str:
        return f"<a value of type {self._type_name}>"


def to_json(value: object) -> str:
    """Text of a value made of None, booleans, numbers, strings, bytes, ranges, lists, tuples, sets and dicts.

    Subclasses arrive as the built-in type they come from. NumPy's scalars and arrays of numbers and texts arrive as
    such where both sides have NumPy, so that they compare as they do in the public harnesses.

    Raises:
        TypeError: for a value of another type, or one that contains such.
    """
    return json.dumps(_encode(value))


def other_to_json(value: object) -> str:
    """Text that arrives as an `OtherValue`, for a value that `to_json` refuses."""
    return json.dumps({"other": type(value).__name__})


def from_json(text: str | bytes) -> Any:
    """The value of such a text.

    Raises:
        ValueError, TypeError, KeyError, ArithmeticError, RecursionError: for a text that `to_json` never makes.
    """
    return _decode(json.loads(text))


def _encode(value: Any) -> Any:
    if value is None or type(value) in _PLAIN:
        return value
    if type(value).__module__ == "numpy" and getattr(getattr(value, "dtype", None), "kind", "") in _ARRAY_KINDS:
        is_scalar = not hasattr(value, "__setitem__")
        return {"array": [value.dtype.str, list(value.shape), value.tobytes().hex(), is_scalar]}
    if isinstance(value, bool | str | float):
        return value
    if isinstance(value, numbers.Number):
        return _encode_number(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [_encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    raise TypeError(f"a value of type {type(value).__name__} is no plain data")


def _encode_number(value: Any) -> Any:
    if isinstance(value, Decimal | Fraction):
        return {"Decimal" if isinstance(value, Decimal) else "Fraction": str(value)}
    if isinstance(value, numbers.Integral):
        whole = int(value)
        # Longer ones in base 16: Python refuses to read thousands of decimal digits, and would be slow at it.
        return whole if whole.bit_length() <= _JSON_INTEGER_BITS else {"int": hex(whole)}
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, numbers.Complex):
        number = complex(value)
        return {"complex": [number.real, number.imag]}
    raise TypeError(f"a value of type {type(value).__name__} is no plain data")


def _decode_array(kind: str, shape: list[int], content: str, is_scalar: bool) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return OtherValue("array")
    if not re.fullmatch(rf"[<>|][{_ARRAY_KINDS}]\d+", kind):
        raise ValueError(f"an array of kind {kind}")
    array = numpy.frombuffer(bytes.fromhex(content), kind).reshape(shape)
    return array[()] if is_scalar else array.copy()


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        ((tag, content),) = value.items()
        return _DECODERS[tag](content)
    return value
