"""What an element-wise function sees, and how it is named so that other processes can find it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.outside_code import taken_along

Scalars = Mapping[str, Sequence[float] | Sequence[int]]
"""Small lists that a function gets beside the block: numbers arrive as float32, integers as int32, each [length]."""


class Block:
    """A run of n parameters, in float32.

    Attributes:
        base: parameters of the base, [n].
        task_vectors: one [n] per specialist, in the order of their sorted names.
        position: place of each parameter in its own flattened tensor, int32 [n], counted from the last multiple of
            2**30; only meaningful to a function that `uses_position`.
        companions: one more [n] per specialist, such as a Fisher diagonal or a mask of zeros and ones, or one for all;
            empty where the function has no `companion`.
        has_dropped: whether `keep_where` was called.
    """

    def __init__(
        self, base: Tensor, task_vectors: list[Tensor], position: Tensor, companions: list[Tensor], zero: Tensor
    ) -> None:
        self.base = base
        self.task_vectors = task_vectors
        self.position = position
        self.companions = companions
        self.has_dropped = False
        self._zero = zero

    def keep_where(self, condition: Tensor, values: Tensor) -> Tensor:
        """The values where a condition holds, elsewhere zero; for finite values.

        Args:
            condition: a comparison, bool [n].
            values: float32 [n].
        """
        self.has_dropped = True
        # Compiled code chooses, from a zero that it does not know, which takes fewest instructions. Eager code
        # multiplies by the condition, since it chooses several times more slowly; what it drops keeps its sign.
        if torch.compiler.is_exporting():
            return torch.where(condition, values, self._zero)
        return condition.float() * values


@dataclass(frozen=True)
class BlockFunction:
    """A pure element-wise function `(block, scalars, **options) -> float32 [n]`.

    It must be defined at the top of a module, an importable one or a user's file, and use only element-wise torch
    operations, so that any cut into blocks gives the same bits.

    Attributes:
        function: the function; `scalars` arrives as a mapping of small tensors.
        options: keyword arguments baked into the compiled form; a new value compiles anew.
        uses_position: whether it reads `block.position`.
        companion: dtype in which `block.companions` are kept: float32, bfloat16, bool, uint8; None where it reads none.
        shared_companion: whether there is one companion for all specialists.
    """

    function: Callable[..., Tensor]
    options: tuple[tuple[str, Any], ...] = ()
    uses_position: bool = False
    companion: torch.dtype | None = None
    shared_companion: bool = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        """With the file of its function, where that is a user's own."""
        return taken_along(self.function, super().__reduce_ex__(protocol))

    def num_companions(self, num_specialists: int) -> int:
        """How many companions it reads."""
        return 0 if self.companion is None else 1 if self.shared_companion else num_specialists

    def array_dtypes(self, num_specialists: int) -> list[torch.dtype]:
        """What the arrays of `values` are made of: base, K task vectors, and the companions that it reads."""
        companions = [] if self.companion is None else [self.companion] * self.num_companions(num_specialists)
        return [torch.bfloat16] * (num_specialists + 1) + companions

    def values(self, arrays: Sequence[Tensor], lanes: Tensor, start: Tensor, scalars: dict[str, Tensor]) -> Tensor:
        """Widen to float32 and call the function.

        Args:
            arrays: base, task vectors and companions, each [n], of `array_dtypes`.
            lanes: int32 [n], 0 .. n-1.
            start: int32 [1], position of the first parameter.
            scalars: what `scalar_tensors` makes.

        Returns:
            float32 [n], to be rounded once.
        """
        base, *others = (array.float() for array in arrays)
        separate = self.companion is not None and not self.shared_companion
        num_specialists = len(others) // 2 if separate else len(others) - self.num_companions(1)
        zero = scalars[ZERO]
        block = Block(base, others[:num_specialists], lanes + start, others[num_specialists:], zero)
        result = self.function(block, scalars, **dict(self.options))
        # Dropped entries are zeros of either sign, which the sign of a result that is zero may follow. A sum with 0.0
        # is never -0.0; so compiled and eager code give the same bits, and no method needs to know.
        return result + zero if block.has_dropped else result


ZERO = "0.0"
"""Name, beside a function's scalars, of a 0.0 that compilers do not know: they would leave out `x + 0.0`.

No scalar can be called so, since names of scalars are those of Python.
"""


def scalar_tensors(scalars: Sequence[Scalars], device: torch.device) -> list[dict[str, Tensor]]:
    """Each of several scalars as small tensors, float32 where any entry is a float, else int32; and the zero.

    Made as rows of one tensor a name: making a tensor takes microseconds, which a model of hundreds of tensors would
    notice.
    """
    rows: dict[str, Tensor] = {}
    for name in scalars[0]:
        is_float = any(isinstance(value, float) for one in scalars for value in one[name])
        dtype = torch.float32 if is_float else torch.int32
        # Rows begin on 16 bytes, four numbers: compiled code for a GPU copies an argument that does not.
        width = len(scalars[0][name])
        padding = [0] * (-width % 4)
        rows[name] = torch.tensor([[*one[name], *padding] for one in scalars], dtype=dtype, device=device)[:, :width]
    zero = torch.zeros(1, device=device)
    return [{**{name: row[index] for name, row in rows.items()}, ZERO: zero} for index in range(len(scalars))]
