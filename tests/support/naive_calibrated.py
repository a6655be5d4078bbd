"""The methods that see data, as their definitions read: whole models of transformers, one sample at a time, no Ray.

`Texts` holds token ids (1, L) of each sample. Results hold the merged tensors only, in float32.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from naive_methods import flat, is_merged, task_vectors

Weights = dict[str, Tensor]
Texts = dict[str, list[Tensor]]


def load(folder: Any) -> Any:
    attention = "eager" if "gemma" in str(folder) else "sdpa"
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
    ).eval()


def weights(model: Any) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters() if is_merged(name)}


def average(base: Weights, models: list[Weights]) -> Weights:
    return {name: base[name] + sum(model[name] - base[name] for model in models) / len(models) for name in base}


def fisher_diagonal(model: Any, texts: list[Tensor]) -> Weights:
    total = {name: torch.zeros_like(p) for name, p in weights(model).items()}
    for ids in texts:
        model.zero_grad()
        (-model(ids).logits[0, -1].log_softmax(0).max()).backward()
        for name, parameter in model.named_parameters():
            if name in total:
                total[name] += parameter.grad**2 / len(texts)
    return total


def fisher(base: Any, models: dict[str, Any], texts: Texts, weight: float | dict[str, float] = 1.0) -> Weights:
    """As everywhere, a specialist is the base plus its task vector in bf16."""
    top = bottom = dict.fromkeys(weights(base), 0)
    for name in sorted(models):
        factor = weight[name] if isinstance(weight, dict) else weight
        diagonal = fisher_diagonal(models[name], texts[name])
        origin, own = weights(base), weights(models[name])
        theta = {n: origin[n] + (own[n] - origin[n]).bfloat16() for n in own}
        top = {n: top[n] + factor * (diagonal[n] + 1e-10) * theta[n] for n in theta}
        bottom = {n: bottom[n] + factor * (diagonal[n] + 1e-10) for n in theta}
    return {n: top[n] / bottom[n] for n in top}


def linear_inputs(model: Any, texts: list[Tensor]) -> dict[str, Tensor]:
    """Rows of X of every merged linear layer."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and is_merged(f"{name}.weight"):
            rows = seen.setdefault(f"{name}.weight", [])
            hooks.append(module.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0][0])))
    with torch.no_grad():
        for ids in texts:
            model(ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def solve(grams: list[Tensor], thetas: list[Tensor], reduction: float) -> Tensor:
    scaled = [g * reduction + (1 - reduction) * g.diagonal().diag() for g in (gram.double() for gram in grams)]
    right = sum(gram @ theta.double().T for gram, theta in zip(scaled, thetas))
    singular = bool((sum(scaled).diagonal() == 0).any()) or torch.linalg.cond(sum(scaled)) > 1e8
    inverse = torch.linalg.pinv(sum(scaled), rtol=len(grams[0]) * 2**-23) if singular else torch.linalg.inv(sum(scaled))
    return (inverse @ right).T.float()


def regmean(base: Any, models: dict[str, Any], texts: Texts, reduction: float) -> Weights:
    names = sorted(models)
    inputs = {name: linear_inputs(models[name], texts[name]) for name in names}
    merged = average(weights(base), [weights(models[name]) for name in names])
    for layer in inputs[names[0]]:
        grams = [inputs[n][layer].T @ inputs[n][layer] / len(inputs[n][layer]) for n in names]
        merged[layer] = solve(grams, [weights(models[n])[layer] for n in names], reduction)
    return merged


def regmean_plusplus(base: Any, models: dict[str, Any], texts: Texts, reduction: float) -> Weights:
    """Layer l of every specialist sees the merged layers below it; bf16 between layers, as the merged model is."""
    names = sorted(models)
    result = average(weights(base), [weights(models[name]) for name in names])
    merged = copy.deepcopy(base)
    for index in range(base.config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        grams: dict[str, list[Tensor]] = {}
        for name in names:
            hybrid = copy.deepcopy(merged)
            hybrid.model.layers[index].load_state_dict(models[name].model.layers[index].state_dict())
            for layer, rows in linear_inputs(hybrid, texts[name]).items():
                if layer.startswith(prefix):
                    grams.setdefault(layer, []).append(rows.T @ rows / len(rows))
        for layer, matrices in grams.items():
            result[layer] = solve(matrices, [weights(models[n])[layer] for n in names], reduction)
        merged.load_state_dict(
            {n: t.bfloat16().float() for n, t in result.items() if n.startswith(prefix)}, strict=False
        )
    return result


def trained_mask(
    base: Any,
    vector: Weights,
    texts: list[Tensor],
    *,
    threshold: float,
    sigmoid_bias: float,
    learning_rate: float,
    epochs: int,
    l1_strength: float,
) -> dict[str, Tensor]:
    logits = {n: torch.where(v.float().abs() >= threshold, sigmoid_bias, -sigmoid_bias) for n, v in vector.items()}
    origin = weights(base)
    for _ in range(epochs):
        model = copy.deepcopy(base)
        grafted = {n: origin[n] + logits[n].sigmoid() * vector[n].float() for n in origin}
        model.load_state_dict(grafted, strict=False)
        for ids in texts:
            (model(ids, labels=ids).loss / len(texts)).backward()
        for name, parameter in model.named_parameters():
            if name in logits:
                slope = logits[name].sigmoid() * (1 - logits[name].sigmoid())
                step = parameter.grad * vector[name].float() * slope
                logits[name] = logits[name] - learning_rate * step - l1_strength * slope
    return {name: value > 0 for name, value in logits.items()}


def localize_and_stitch(
    base: Any, models: dict[str, Any], texts: Texts, sparsity: float, **training: Any
) -> tuple[Weights, list[dict[str, Tensor]]]:
    names = sorted(models)
    vectors = task_vectors(_bf16(base), {name: _bf16(models[name]) for name in names})
    masks = []
    for name, vector in zip(names, vectors):
        magnitudes = flat(vector).abs()
        smallest = magnitudes.topk(max(1, math.floor(len(magnitudes) * sparsity))).values.min()
        kept = {n: v for n, v in vector.items() if is_merged(n)}
        masks.append(trained_mask(base, kept, texts[name], threshold=float(smallest), **training))
    merged = weights(base)
    for n in merged:
        owners = sum(mask[n].int() for mask in masks).clamp(min=1)
        merged[n] = merged[n] + sum(v[n].float() * mask[n] / owners for v, mask in zip(vectors, masks))
    return merged, masks


def _bf16(model: Any) -> Weights:
    """All tensors as the checkpoint holds them; of tied ones the first name."""
    return {name: p.detach().bfloat16() for name, p in model.named_parameters()}
