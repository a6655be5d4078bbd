"""Names of tensors with what a wrapper put into them: torch.compile, DDP, FSDP, PEFT, multimodal nesting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# Before all names.
_BEFORE = ("_orig_mod.", "module.", "base_model.model.", "model.language_model.", "language_model.")
# At any place, where layers are wrapped one by one.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrapped(names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Ever shorter names, each time with what was taken away and a mapping from old to new names."""
    current = {name: name for name in names}
    taken = ""
    while current:
        step = _unwrapped_once(list(current.values()))
        if step is None:
            return
        wrapper, shorter = step
        if len(set(shorter.values())) < len(shorter):
            return
        taken += wrapper
        current = {old: shorter[new] for old, new in current.items()}
        yield taken, current


def _unwrapped_once(names: list[str]) -> tuple[str, dict[str, str]] | None:
    for prefix in _BEFORE:
        if all(name.startswith(prefix) for name in names):
            # What nests a language model keeps the rest of its names.
            kept = "model." if prefix == "model.language_model." else ""
            return prefix, {name: kept + name.removeprefix(prefix) for name in names}
    for wrapper in _INSIDE:
        if any(wrapper in name for name in names):
            return wrapper, {name: name.replace(wrapper, "") for name in names}
    return None
