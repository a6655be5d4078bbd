"""What programs in the sandbox may send: any text is plain data or refused, and plain data arrive as they were."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mergebench_ray.sandbox import values

# What the checker takes as the end of the program (`untrusted.Untrusted`).
REFUSED = (ValueError, TypeError, KeyError, ArithmeticError, RecursionError)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(values._DECODERS)) | st.text(), inner, max_size=2)
        | st.fixed_dictionaries({"array": st.lists(inner, min_size=4, max_size=4)})
    ),
    max_leaves=12,
)
hashable = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
plain_data = st.recursive(
    hashable | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False) | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
        | st.dictionaries(hashable | st.tuples(hashable, hashable), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_reply_is_plain_data_or_refused(reply: bytes) -> None:
    with contextlib.suppress(*REFUSED):
        values.from_json(reply)


@given(plain_data)
def test_plain_data_arrive_as_they_were(value: Any) -> None:
    arrived = values.from_json(values.to_json(value))
    assert arrived == value
    assert type(arrived) is type(value)


@given(
    st.sampled_from(["?", "<i1", "<i8", ">i4", "<u2", "<f2", "<f4", "<f8", "<c16", "<U3", "S2"]),
    st.lists(st.integers(0, 4), max_size=3),
    st.binary(min_size=64 * 16, max_size=64 * 16),
)
def test_arrays_arrive_as_they_were(kind: str, shape: list[int], content: bytes) -> None:
    dtype = np.dtype(kind)
    # Any bits are numbers; texts need characters that exist.
    filled = np.frombuffer(content, "u1")[: int(np.prod(shape))] % 2 if dtype.kind in "?bUS" else None
    array = np.frombuffer(content, dtype)[: int(np.prod(shape))] if filled is None else filled.astype(dtype)
    array = array.reshape(shape)
    arrived = values.from_json(values.to_json(array))
    assert (arrived.dtype, arrived.shape, arrived.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert isinstance(arrived, np.ndarray)
