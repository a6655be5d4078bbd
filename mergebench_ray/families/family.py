"""What a tensor is, by its name: embedding, output head, part of a layer; the one place that knows families' words."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from mergebench_ray.config.fields import ModuleKind, Strict
from mergebench_ray.config.merged_parts import DEFAULT_PARTS, MergedParts
from mergebench_ray.config.yaml_files import parse_model, read_yaml
from mergebench_ray.families.decoder import DecoderLayout
from mergebench_ray.families.settings import SettingRules
from mergebench_ray.families.vectors import VectorWords

_FOLDER = Path(__file__).parent
_DEFAULT = "default"
_MAX_DIGITS = 7
_OF_A_MODULE = ("weight", "bias")


class ModelFamily(Strict):
    """The words of models with one `model_type`; `default.yaml` says what they are in most.

    Attributes:
        text_configs: settings under which the configuration of the part for text lies.
        layer_counts: settings that say how many layers there are.
        output_heads: modules that are output heads.
        output_head_names: pattern of whole names of output heads.
        token_embeddings: modules that are tables of token embeddings.
        position_embeddings: modules that are tables of positions.
        of_embeddings: pattern in the names of whatever goes with the embeddings.
        further_token_layers: pattern of modules that hold layers which predict further tokens.
        other_senses: pattern of modules for pictures and sound.
        transposed: pattern of modules whose weights are stored [in, out].
        token_mixers: patterns in names of what mixes tokens.
        experts: pattern of modules of which a token passes through some, or that stand beside those.
        routers: pattern of modules that choose among them.
        fused: pattern of modules, or tensors, in which several weights are laid side by side.
        masks: pattern of the ends of names of what the code makes by itself.
        recomputed: pattern of the ends of names of what a model computes anew whenever it starts.
        settings: which settings say what a model computes.
        vectors: which modules write and read the vectors inside.
        decoder: how transformers builds the decoder.
    """

    text_configs: tuple[str, ...]
    layer_counts: tuple[str, ...]
    output_heads: frozenset[str]
    output_head_names: re.Pattern[str]
    token_embeddings: frozenset[str]
    position_embeddings: frozenset[str]
    of_embeddings: re.Pattern[str]
    further_token_layers: re.Pattern[str]
    other_senses: re.Pattern[str]
    transposed: re.Pattern[str]
    token_mixers: tuple[re.Pattern[str], ...]
    experts: re.Pattern[str]
    routers: re.Pattern[str]
    fused: re.Pattern[str]
    masks: re.Pattern[str]
    recomputed: re.Pattern[str]
    settings: SettingRules
    vectors: VectorWords
    decoder: DecoderLayout

    def is_merged(self, name: str, parts: MergedParts = DEFAULT_PARTS) -> bool:
        """Whether a tensor is in a part that is merged; without more said neither an embedding nor the output head."""
        return self.counts_for_threshold(name, parts) and (parts.embeddings or not self.is_output_head(name))

    def is_token_embedding(self, name: str) -> bool:
        """Whether a tensor is a table of token embeddings, which a tied head shares."""
        module, _, leaf = name.rpartition(".")
        return leaf == "weight" and module.rpartition(".")[2] in self.token_embeddings

    def is_output_head(self, name: str) -> bool:
        """Whether a tensor belongs to an output head of its own (untied from the embeddings)."""
        return not self.output_heads.isdisjoint(name.split(".")) or self.output_head_names.fullmatch(name) is not None

    def is_embedding(self, name: str) -> bool:
        """Whether a tensor goes with the embeddings: all with "embed" in their names, as in MergeBench's code.

        What is embedded beside the text, as patches of pictures are, has no vocabulary, and is merged.
        """
        words = self.token_embeddings | self.position_embeddings
        has_word = self.of_embeddings.search(name) is not None or not words.isdisjoint(name.split("."))
        return has_word and not self.is_of_another_sense(name)

    def counts_for_threshold(self, name: str, parts: MergedParts = DEFAULT_PARTS) -> bool:
        """Whether a tensor's entries count for global thresholds: a head's of its own do, though it is not merged."""
        if self.is_of_another_sense(name):
            return parts.towers
        return parts.embeddings or not self.is_embedding(name)

    def layer_of(self, name: str, num_layers: int) -> int | None:
        """Index of the text layer that a tensor belongs to: the first number among the parts of its name.

        None outside the layers, and in stacks of another kind: layers that predict further tokens (they are numbered
        after the others, or from 0 in a part of their own), vision and audio.
        """
        stack = _layer_prefix(name)
        number = num_layers if stack is None else int(stack.rpartition(".")[2])
        return None if number >= num_layers or self.is_in_other_stack(name) else number

    def is_numbered(self, name: str) -> bool:
        """Whether a tensor belongs to a layer, of whatever stack."""
        return _layer_prefix(name) is not None

    def is_beside_the_text(self, name: str, num_layers: int) -> bool:
        """Whether plain text generation does without a tensor: layers that predict further tokens, vision, audio."""
        no_text_layer = self.is_numbered(name) and self.layer_of(name, num_layers) is None
        return no_text_layer or self.is_in_other_stack(name)

    def is_in_other_stack(self, name: str) -> bool:
        """Whether a name says that a tensor is beside the text; layers that follow the others do not say it."""
        further = any(map(self.further_token_layers.fullmatch, name.split(".")[:-1]))
        return further or self.is_of_another_sense(name)

    def is_of_another_sense(self, name: str) -> bool:
        """Whether a name says that a tensor belongs to what sees or hears."""
        return any(map(self.other_senses.fullmatch, name.split(".")[:-1]))

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored [in, out], where others are [out, in]."""
        module, _, leaf = name.rpartition(".")
        return leaf == "weight" and self.transposed.fullmatch(module.rpartition(".")[2]) is not None

    def module_kind(self, name: str) -> ModuleKind:
        """What kind of module a merged tensor is part of.

        A norm is one wherever it is, inside attention, too. What neither scales vectors nor mixes tokens is ``mlp``:
        feed-forward layers, experts and routers, and the few tensors that some families have besides.
        """
        module, _, leaf = name.rpartition(".")
        last = module.rpartition(".")[2] if leaf in _OF_A_MODULE else leaf
        if self.vectors.norms.fullmatch(last):
            return "norm"
        return "attention" if any(one.search(name) for one in self.token_mixers) else "mlp"

    def load_group(self, name: str) -> str:
        """What an engine loads as a whole: a tensor's layer, or the tensor alone outside the layers.

        vLLM fuses tensors of a layer into one (query, key and value; gate and up) and repacks a fused one as a whole.
        """
        return _layer_prefix(name) or name

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor is one that the code makes by itself, and that older versions saved: causal masks."""
        return self.masks.search(name) is not None

    def is_recomputed(self, name: str) -> bool:
        """Whether a tensor is one that no model reads, since it follows from the configuration: rotary frequencies."""
        return self.recomputed.search(name) is not None


def family_of(model_type: object) -> ModelFamily:
    """The family of models whose configuration has this `model_type`, which may be missing or of any type."""
    return _family(model_type if isinstance(model_type, str) and model_type in _known() else _DEFAULT)


def own_words() -> dict[str, dict[str, Any]]:
    """Families with words of their own: the words, by `model_type`."""
    return {name: read_yaml(_FOLDER / f"{name}.yaml") for name in sorted(_known() - {_DEFAULT})}


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(file.stem for file in _FOLDER.glob("*.yaml"))


@functools.cache
def _family(name: str) -> ModelFamily:
    words: dict[str, Any] = read_yaml(_FOLDER / f"{_DEFAULT}.yaml")
    if name != _DEFAULT:
        for key, value in read_yaml(_FOLDER / f"{name}.yaml").items():
            words[key] = words[key] | value if isinstance(value, dict) else value
    return parse_model(ModelFamily, words, f"families/{name}.yaml")


# Every swap asks for all names again.
@functools.lru_cache(1 << 16)
def _layer_prefix(name: str) -> str | None:
    """What the tensors of a layer have in common: a name up to the first number among its parts, if there is one."""
    parts = name.split(".")
    at = next((at for at, part in enumerate(parts) if part.isdecimal() and len(part) <= _MAX_DIGITS), None)
    return None if at is None else ".".join(parts[: at + 1])
