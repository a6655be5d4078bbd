"""Tiny random models of the architectures that people merge, made by transformers' own classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from tiny_models import small, tiny_tokenizer

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """How transformers makes a tiny model.

    Attributes:
        name: of its class of configurations, without `Config`.
        settings: of the part for text, beside those that all have.
        model: name of the class of models; by default the one for text.
        beside: settings of further parts, by the name of their configuration: pictures, sound.
        top: settings beside those of the parts.
    """

    name: str
    settings: Settings = field(default_factory=dict)
    model: str = ""
    beside: Mapping[str, Settings] = field(default_factory=dict)
    top: Settings = field(default_factory=dict)

    def config(self) -> Any:
        """Its configuration."""
        made = getattr(transformers, f"{self.name}Config")
        text = {**_SMALL, **self.settings}
        if not self.beside:
            return made(**text)
        return made(text_config=text, **{name: dict(part) for name, part in self.beside.items()}, **self.top)

    @property
    def model_class(self) -> Any:
        """Its class of models."""
        return getattr(transformers, self.model or f"{self.name.removesuffix('Text')}ForCausalLM")

    def random(self) -> Any:
        """A model in bfloat16 of which no weight is as it is when training begins."""
        torch.manual_seed(0)
        model = self.model_class(self.config())
        _shake(model, 0.1)
        return model.to(torch.bfloat16)

    def logits(self, folder: Path, tokens: Sequence[int] = range(3, 40)) -> torch.Tensor:
        """[tokens, vocabulary]: what a written model says to some tokens, in float32, by transformers."""
        model = self.model_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
        with torch.no_grad():
            return torch.as_tensor(model(torch.tensor([list(tokens)])).logits[0])

    def write(self, folder: Path, *, specialists: int = 2) -> list[Path]:
        """Write a base, and specialists of which every parameter differs from it."""
        model = self.random()
        folders = [folder / "base", *(folder / f"specialist{number}" for number in range(specialists))]
        for one in folders:
            if one != folders[0]:
                _shake(model, 0.05)
            model.save_pretrained(one)
            tiny_tokenizer().save_pretrained(one)
        return folders


def _shake(model: Any, much: float) -> None:
    """Move all that is written of a model: buffers too."""
    for weights in model.state_dict().values():
        if weights.is_floating_point():
            # What is infinite are limits, to which training gives numbers.
            weights.nan_to_num_(posinf=1.0, neginf=-1.0).add_(much * torch.randn_like(weights))


_SMALL = {
    **small(),
    **{"hidden_size": 128, "head_dim": 64, "initializer_range": 0.12, "tie_word_embeddings": False},
}
TIED = {"tie_word_embeddings": True}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LLAMA_4 = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 96}
_GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": 64, "sliding_window": 32}
_LATENT = {
    **{"num_key_value_heads": 2, "head_dim": 64, "q_lora_rank": 24, "kv_lora_rank": 512, "qk_nope_head_dim": 64},
    **{"qk_rope_head_dim": 64, "v_head_dim": 64, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "topk_method": "noaux_tc",  # which the files of the model say, and vLLM reads
}
_LINEAR_ATTENTION = {
    **{"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 64, "linear_value_head_dim": 64},
    "layer_types": ["linear_attention", "full_attention"],
}
_QWEN_VISION = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]}}
_SIGLIP = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}

ARCHITECTURES: dict[str, Architecture] = {
    "Llama": Architecture("Llama"),
    "Llama, tied": Architecture("Llama", TIED),
    "Qwen2": Architecture("Qwen2", TIED),
    "Qwen3": Architecture("Qwen3", TIED),
    "Qwen3 MoE": Architecture("Qwen3Moe", _EXPERTS),
    "Qwen3-Next": Architecture("Qwen3Next", {**_EXPERTS, **_LINEAR_ATTENTION, "shared_expert_intermediate_size": 64}),
    "Qwen3.5": Architecture("Qwen3_5Text", _LINEAR_ATTENTION),
    "Qwen3.5, multimodal": Architecture(
        "Qwen3_5", _LINEAR_ATTENTION, "Qwen3_5ForConditionalGeneration", {"vision_config": _QWEN_VISION}
    ),
    "Qwen3.5 MoE": Architecture(
        "Qwen3_5MoeText", {**_EXPERTS, **_LINEAR_ATTENTION, "shared_expert_intermediate_size": 64}
    ),
    "Qwen2.5-VL": Architecture(
        "Qwen2_5_VL", _SECTIONS, "Qwen2_5_VLForConditionalGeneration", {"vision_config": _QWEN_VISION}
    ),
    "Qwen3-VL": Architecture(
        "Qwen3VL",
        _SECTIONS,
        "Qwen3VLForConditionalGeneration",
        {"vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]}},
    ),
    "Gemma-2": Architecture("Gemma2", _GEMMA),
    "Gemma-3": Architecture("Gemma3Text", _GEMMA),
    "Gemma-3, multimodal": Architecture(
        "Gemma3",
        _GEMMA,
        "Gemma3ForConditionalGeneration",
        {"vision_config": _SIGLIP},
        {"mm_tokens_per_image": 4, "tie_word_embeddings": True},
    ),
    "Gemma-4": Architecture("Gemma4Text", {**_GEMMA, "vocab_size_per_layer_input": 320}),
    "Gemma-4, multimodal": Architecture(
        "Gemma4",
        {**_GEMMA, "vocab_size_per_layer_input": 320},
        "Gemma4ForConditionalGeneration",
        {
            "vision_config": {
                **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
                **{"num_key_value_heads": 1, "head_dim": 16, "patch_size": 14},
            },
            "audio_config": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "output_proj_dims": 32,
            },
        },
    ),
    "Mistral": Architecture("Mistral"),
    "Mistral-3": Architecture(
        "Mistral3", {}, "Mistral3ForConditionalGeneration", {"vision_config": {**_SIGLIP, "head_dim": 16}}
    ),
    "Ministral-3": Architecture("Ministral3"),
    "Mixtral": Architecture("Mixtral", _LOCAL_EXPERTS),
    "Llama-4": Architecture("Llama4Text", _LLAMA_4),
    "Llama-4, multimodal": Architecture(
        "Llama4",
        _LLAMA_4,
        "Llama4ForConditionalGeneration",
        {
            "vision_config": {
                **_SIGLIP,
                **{"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
            }
        },
    ),
    "gpt-oss": Architecture("GptOss", _LOCAL_EXPERTS),
    "GLM-4": Architecture("Glm4"),
    "GLM-4 MoE": Architecture(
        "Glm4Moe",
        {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1},
    ),
    "Granite": Architecture("Granite"),
    "Granite-4, hybrid": Architecture(
        "GraniteMoeHybrid",
        {
            **{"layer_types": ["mamba", "attention"], "shared_intermediate_size": 96, "num_local_experts": 0},
            **{"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "num_experts_per_tok": 0},
        },
    ),
    "OLMo-2": Architecture("Olmo2"),
    "OLMo-3": Architecture("Olmo3", {"sliding_window": 32}),
    "OLMoE": Architecture("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "LFM2": Architecture("Lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "Phi-3": Architecture("Phi3"),
    "SmolLM3": Architecture("SmolLM3"),
    "Cohere": Architecture("Cohere", TIED),
    "Command R7B": Architecture("Cohere2", {"tie_word_embeddings": True, "sliding_window": 32}),
    "DeepSeek-V3": Architecture("DeepseekV3", _LATENT),
    "GPT-2": Architecture(
        "GPT2",
        {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 512, "tie_word_embeddings": True},
        "GPT2LMHeadModel",
    ),
    "GPT-NeoX": Architecture("GPTNeoX"),
    "Nemotron-H": Architecture(
        "NemotronH",
        {
            **{"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 32},
            **{"ssm_state_size": 16, "n_groups": 1},
        },
    ),
    "Falcon-H1": Architecture(
        "FalconH1",
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1},
    ),
    "StableLM": Architecture("StableLm"),
    "StarCoder2": Architecture("Starcoder2"),
    "EXAONE-4": Architecture("Exaone4", {"sliding_window": 32}),
    "Apertus": Architecture("Apertus"),
}
