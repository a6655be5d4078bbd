"""Making sure that a model's embeddings and output head are known as such, so that none of them is merged."""

from __future__ import annotations

from mergebench_ray.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergebench_ray.errors import InputError
from mergebench_ray.families import ModelFamily
from mergebench_ray.families.configuration import tables_and_heads

_REMEDY = "such models cannot be merged"


def require_known_embeddings(base: Checkpoint) -> None:
    """Refuse a base of which a tensor may be an embedding or output head although its name does not say so.

    Names decide where they leave no doubt: outside the layers all that is merged are vectors. Else transformers' own
    model of the configuration decides, and where there is none the number of rows.

    Raises:
        InputError: naming the tensor, or that none of the tensors is known to be the token embeddings.
    """
    family = base.family
    tables = {info.shape[0] for name, info in base.tensors.items() if family.is_token_embedding(name) and info.shape}
    doubtful = [info for info in base.tensors.values() if _is_doubtful(info, family, base.num_layers)]
    if tables and not doubtful:
        return
    known = tables_and_heads(base.config, base.config_file)
    if known is None and not tables:
        raise InputError(f"base ({base}): none of its tensors is known to be the token embeddings; {_REMEDY}")
    for info in doubtful:
        if info.shape[0] in tables if known is None else _is_among(info.name, known):
            raise InputError(
                f"base ({base}): tensor {info.name!r} is an embedding or output head, which come from the base, but "
                f"is not known by this name; {_REMEDY}"
            )
    if not tables and not any(_is_among(name, known or set()) and not family.is_merged(name) for name in base.tensors):
        raise InputError(f"base ({base}): none of its tensors is known to be the token embeddings; {_REMEDY}")


def _is_doubtful(info: TensorInfo, family: ModelFamily, num_layers: int) -> bool:
    """Whether a tensor outside the layers would be merged although it has rows."""
    name = info.name
    outside = family.layer_of(name, num_layers) is None and not family.is_beside_the_text(name, num_layers)
    return outside and len(info.shape) > 1 and family.is_merged(name) and info.numel > 0


def _is_among(name: str, known: set[str]) -> bool:
    """Whether a name is known, with or without what the model or a part of it is called."""
    return any(name == one or name.endswith(f".{one}") or one.endswith(f".{name}") for one in known)
