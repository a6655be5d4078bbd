"""Each method as its definition reads: whole tensors, plain PyTorch, nothing clever. What the fused passes must equal.

A function has its method's name and takes the hyper-parameters completed, as a recipe has them. `base` and the values
of `specialists` map tensor names to tensors in bf16, as they come from the checkpoint. Results hold the merged tensors
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mergebench_ray.kernels.random import random_numbers, scramble, specialist_key, tensor_keys, threshold_of

Model = dict[str, Tensor]


def task_vectors(base: Model, specialists: dict[str, Model]) -> list[Model]:
    """bf16 subtraction, specialists in the order of their sorted names; of a larger vocabulary the base's rows."""
    return [
        {
            name: specialists[k][name][: len(own)] - own if own.dim() else specialists[k][name] - own
            for name, own in base.items()
        }
        for k in sorted(specialists)
    ]


def is_merged(name: str) -> bool:
    return "embed" not in name and name != "lm_head.weight"


def flat(vector: Model) -> Tensor:
    """All entries that count for a global threshold."""
    return torch.cat([vector[name].flatten().float() for name in sorted(vector) if "embed" not in name])


def finish(base: Model, merged: Model) -> Model:
    """Add to the base in float32, round once."""
    return {name: (base[name].float() + merged[name]).bfloat16() for name in base if is_merged(name)}


def model_soup(base: Model, specialists: dict[str, Model]) -> Model:
    vectors = task_vectors(base, specialists)
    return finish(base, {name: sum(v[name].float() for v in vectors) / len(vectors) for name in base})


def task_arithmetic(
    base: Model,
    specialists: dict[str, Model],
    scaling_coef: dict[str, float],
    weight: dict[str, float] | None = None,
    normalize: bool = False,
) -> Model:
    vectors = dict(zip(sorted(specialists), task_vectors(base, specialists)))
    weights = weight or dict.fromkeys(specialists, 1.0)
    by = sum(weights.values()) if normalize else 1.0
    scales = {k: scaling_coef[k] * weights[k] / by for k in specialists}
    return finish(base, {n: sum(scales[k] * v[n].float() for k, v in vectors.items()) for n in base})


def ties(
    base: Model,
    specialists: dict[str, Model],
    scaling_coef: dict[str, float],
    density: float | dict[str, float],
    merge_func: str,
    trim: str = "global",
    weight: dict[str, float] | None = None,
    rescale: bool = False,
) -> Model:
    trimmed, factors = [], []
    shares = density if isinstance(density, dict) else dict.fromkeys(specialists, density)
    for k, vector in zip(sorted(specialists), task_vectors(base, specialists)):
        density = shares[k]
        floats = {name: v.float() for name, v in vector.items()}
        whole = flat(vector).abs()
        rank = len(whole) - math.floor(len(whole) * density)
        least = dict.fromkeys(vector, whole.kthvalue(rank).values if rank else torch.tensor(0.0))
        if trim == "tensor":
            kept = {name: max(1, math.floor(v.numel() * density)) for name, v in floats.items()}
            least = {name: v.abs().flatten().topk(kept[name]).values.min() for name, v in floats.items()}
        trimmed.append({name: torch.where(v.abs() >= least[name], v, 0.0) for name, v in floats.items()})
        norms = {name: (v.abs().double().sum(), trimmed[-1][name].abs().double().sum()) for name, v in floats.items()}
        factors.append({name: float(whole / kept) if rescale else 1.0 for name, (whole, kept) in norms.items()})
    weights = torch.tensor([1.0 if weight is None else weight[k] for k in sorted(specialists)])[:, None, None]
    signs = {name: sum(v[name] for v in trimmed).sign() for name in base}
    majority = flat(signs).sum().sign() if trim == "global" and weight is None else 1.0
    assert trim == "tensor" or not rescale
    merged = {}
    for name in base:
        entries = torch.stack([f[name] * v[name].flatten() for f, v in zip(factors, trimmed)])[:, None] * weights
        sign = entries.sum(0).sign()
        elected = torch.where(sign == 0, majority, sign)
        selected = torch.where((entries.sign() == elected) & (entries != 0), entries, 0.0)
        scaled = torch.stack([scaling_coef[k] * entry for k, entry in zip(sorted(specialists), selected)])
        if merge_func == "sum":
            total = scaled.sum(0)
        elif merge_func == "mean":
            total = divided(scaled.sum(0), (weights * (selected != 0)).sum(0))
        else:
            total = scaled.gather(0, selected.abs().argmax(0, keepdim=True))[0]
        merged[name] = total.view(base[name].shape)
    return finish(base, merged)


def divided(total: Tensor, by: Tensor) -> Tensor:
    """By nothing where that is 0."""
    return total / torch.where(by == 0, 1.0, by)


def elected(entries: Tensor, weights: Tensor, normalize: bool) -> Tensor:
    """What TIES adds up of weighted entries [K, n], as mergekit does: where they cancel out, those that have risen."""
    agree = entries.sign() == torch.where(entries.sum(0) >= 0, 1.0, -1.0)
    total = (entries * agree).sum(0)
    return divided(total, (weights[:, None] * agree).sum(0)) if normalize else total


def after_dropping(
    base: Model,
    specialists: dict[str, Model],
    drop: Callable[[str, str, Tensor], Tensor],
    weight: dict[str, float],
    scaling_coef: float,
    normalize: bool,
    elect: bool,
) -> Model:
    """What `drop(specialist, tensor, values)` leaves of each flat float32 task vector, weighted and merged."""
    names = sorted(specialists)
    weights = torch.tensor([weight[k] for k in names])
    vectors = dict(zip(names, task_vectors(base, specialists)))
    merged = {}
    for name in filter(is_merged, base):
        kept = torch.stack([drop(k, name, vectors[k][name].float().flatten()) for k in names])
        entries = weights[:, None] * kept
        if elect:
            total = elected(entries, weights, normalize)
        else:
            total = entries.sum(0) / (weights.sum() if normalize else 1.0)
        merged[name] = scaling_coef * total.view(base[name].shape)
    return finish(base, merged)


def drawn(seed: int, name: str, specialist: str, entries: int) -> Tensor:
    """The kernel's random numbers, whose statistics have tests of their own."""
    keys = torch.tensor(tensor_keys(seed, name, 0), dtype=torch.int32)
    key = torch.tensor(specialist_key(seed, name, 0, specialist), dtype=torch.int32)
    return random_numbers(scramble(torch.arange(entries, dtype=torch.int32), keys), key)


def dare_ties(
    base: Model,
    specialists: dict[str, Model],
    weight: dict[str, float],
    density: dict[str, float],
    normalize: bool,
    scaling_coef: float,
    rescale: bool,
    seed: int,
    elect: bool = True,
) -> Model:
    def drop(k: str, name: str, values: Tensor) -> Tensor:
        kept = drawn(seed, name, k, len(values)) >= threshold_of(1 - density[k])
        return values * kept / (density[k] if rescale else 1)

    return after_dropping(base, specialists, drop, weight, scaling_coef, normalize, elect)


def dare_linear(base: Model, specialists: dict[str, Model], **hyper_parameters: Any) -> Model:
    return dare_ties(base, specialists, **hyper_parameters, elect=False)


def della(
    base: Model,
    specialists: dict[str, Model],
    weight: dict[str, float],
    density: dict[str, float],
    normalize: bool,
    scaling_coef: float,
    epsilon: float | dict[str, float],
    rescale: bool,
    seed: int,
    elect: bool = True,
) -> Model:
    def drop(k: str, name: str, values: Tensor) -> Tensor:
        rows = values.view(-1, base[name].shape[-1] if base[name].dim() else 1)
        ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1) / max(rows.shape[1] - 1, 1)
        if rows.shape[1] == 1:
            ranks = torch.full_like(ranks, 0.5)
        ranks = (255 * ranks.double()).round().float() / 255
        spread = min(epsilon[k] if isinstance(epsilon, dict) else epsilon, density[k], 1 - density[k])
        p = (density[k] - spread + 2 * spread * ranks).flatten()
        kept = (drawn(seed, name, k, len(values)) >= (0.5 - p) * 2.0**32) & (p > 0)
        return torch.where(kept, values / (p if rescale else 1), 0.0)

    return after_dropping(base, specialists, drop, weight, scaling_coef, normalize, elect)


def della_linear(base: Model, specialists: dict[str, Model], **hyper_parameters: Any) -> Model:
    return della(base, specialists, **hyper_parameters, elect=False)


def breadcrumbs(
    base: Model,
    specialists: dict[str, Model],
    weight: dict[str, float],
    density: dict[str, float],
    normalize: bool,
    scaling_coef: float,
    gamma: float | dict[str, float],
    rescale: bool,
    elect: bool = False,
) -> Model:
    def drop(k: str, name: str, values: Tensor) -> Tensor:
        kept, n = math.floor(density[k] * len(values)), len(values)
        below = max(0, n - kept - math.floor((gamma[k] if isinstance(gamma, dict) else gamma) * n))
        ascending = values.abs().sort().values[below : below + kept]
        if not kept:
            return torch.zeros_like(values)
        inside = values * (values.abs() >= ascending[0]) * (values.abs() <= ascending[-1])
        left = inside.abs().double().sum()
        return inside * (float(values.abs().double().sum() / left) if rescale and left > 0 else 1)

    return after_dropping(base, specialists, drop, weight, scaling_coef, normalize, elect)


def breadcrumbs_ties(base: Model, specialists: dict[str, Model], **hyper_parameters: Any) -> Model:
    return breadcrumbs(base, specialists, **hyper_parameters, elect=True)


def dare(base: Model, specialists: dict[str, Model], scaling_coef: dict[str, float], p: float, seed: int) -> Model:
    merged = {name: torch.zeros(tensor.shape) for name, tensor in base.items()}
    for specialist, vector in zip(sorted(specialists), task_vectors(base, specialists)):
        for name, tensor in vector.items():
            kept = (drawn(seed, name, specialist, tensor.numel()) >= threshold_of(p)).view(tensor.shape)
            merged[name] += scaling_coef[specialist] * tensor.float() * kept / (1 - p)
    return finish(base, merged)


def consensus(
    base: Model, specialists: dict[str, Model], scaling_coef: dict[str, float], mu: dict[str, float], k: int
) -> Model:
    vectors = dict(zip(sorted(specialists), task_vectors(base, specialists)))
    merged = {}
    for name in base:
        total = sum(vector[name].float() for vector in vectors.values())
        masks = sum((v[name].float().abs() > mu[s] * (total - v[name].float()).abs()).int() for s, v in vectors.items())
        scaled = sum(scaling_coef[s] * v[name].float() for s, v in vectors.items())
        merged[name] = scaled * (masks >= k)
    return finish(base, merged)


def localize_and_stitch(base: Model, specialists: dict[str, Model], sparsity: float, overlap: str) -> Model:
    vectors = task_vectors(base, specialists)
    masks = []
    for vector in vectors:
        magnitudes = flat(vector).abs()
        smallest = magnitudes.topk(max(1, math.floor(len(magnitudes) * sparsity))).values.min()
        masks.append({name: v.float().abs() >= smallest for name, v in vector.items()})
    merged = {}
    for name in base:
        merged[name] = torch.zeros(base[name].shape)
        for k, (vector, mask) in enumerate(zip(vectors, masks)):
            if overlap == "paper":
                owners = sum(other[name].int() for other in masks)
            else:
                # The public code's loop keeps only what it computes for the last other specialist.
                last = [other[name] for j, other in enumerate(masks) if j != k][-1]
                owners = mask[name].int() + (mask[name] & last).int()
            merged[name] += vector[name].float() * mask[name] / owners.clamp(min=1)
    return finish(base, merged)


def in_each_tensor(
    base: Model, specialists: dict[str, Model], merge: Callable[[Tensor, list[Tensor]], Tensor]
) -> Model:
    """Merge each tensor by itself: flat float64 base and specialists in the order of their names, rounded once."""
    vectors = task_vectors(base, specialists)
    merged = {}
    for name in filter(is_merged, base):
        flat_base = base[name].double().flatten()
        tensors = [flat_base + vector[name].double().flatten() for vector in vectors]
        merged[name] = merge(flat_base, tensors).view(base[name].shape).bfloat16()
    return merged


def linear(
    base: Model, specialists: dict[str, Model], weight: dict[str, float], base_weight: float, normalize: bool
) -> Model:
    def merge(start: Tensor, tensors: list[Tensor]) -> Tensor:
        weights = [base_weight, *(weight[name] for name in sorted(specialists))]
        total = sum(w * tensor for w, tensor in zip(weights, [start, *tensors]))
        return total / sum(weights) if normalize else total

    return in_each_tensor(base, specialists, merge)


def model_stock(base: Model, specialists: dict[str, Model]) -> Model:
    def merge(start: Tensor, tensors: list[Tensor]) -> Tensor:
        vectors = [tensor - start for tensor in tensors]
        cosine = sum(one @ two / (one.norm() * two.norm()).clamp(1e-6) for one, two in combinations(vectors, 2))
        count = len(vectors)
        cosine = cosine / math.comb(count, 2)
        share = count * cosine / (1 + (count - 1) * cosine)
        return share * sum(tensors) / count + (1 - share) * start

    return in_each_tensor(base, specialists, merge)


def between(one: Tensor, two: Tensor, share: float) -> Tensor:
    """On the great circle, of vectors that are not parallel; one without a length is at a right angle to all."""
    angle = torch.acos(one @ two / (one.norm() * two.norm()).clamp(1e-8))
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * two) / torch.sin(angle)


def slerp(base: Model, specialists: dict[str, Model], t: dict[str, float]) -> Model:
    (share,) = t.values()

    def merge(start: Tensor, tensors: list[Tensor]) -> Tensor:
        (end,) = tensors
        parallel = start @ end / (start.norm() * end.norm()).clamp(1e-8) > 0.9995
        return (1 - share) * start + share * end if parallel else between(start, end, share)

    return in_each_tensor(base, specialists, merge)


def nuslerp(base: Model, specialists: dict[str, Model], weight: dict[str, float], around: str) -> Model:
    first, second = (weight[name] for name in sorted(specialists))

    def merge(start: Tensor, tensors: list[Tensor]) -> Tensor:
        centre = start if around == "base" else torch.zeros_like(start)
        return centre + between(*(tensor - centre for tensor in tensors), second / (first + second))

    return in_each_tensor(base, specialists, merge)


def multislerp(
    base: Model, specialists: dict[str, Model], weight: dict[str, float], normalize: bool, around: str
) -> Model:
    given = torch.tensor([weight[name] for name in sorted(specialists)], dtype=torch.float64)
    weights = given / given.sum() if normalize else given

    def merge(start: Tensor, tensors: list[Tensor]) -> Tensor:
        centre = start if around == "base" else torch.zeros_like(start)
        rays = torch.stack([tensor - centre for tensor in tensors])
        units = rays / rays.norm(dim=1, keepdim=True)
        mean = weights @ units
        mean = mean / mean.norm()
        tangent = weights @ (units - (units @ mean)[:, None] * mean)
        angle = tangent.norm() + 1e-8
        return centre + (angle.cos() * mean + angle.sin() * tangent / angle) * (weights @ rays.norm(dim=1))

    return in_each_tensor(base, specialists, merge)


def karcher(
    base: Model, specialists: dict[str, Model], weight: dict[str, float], steps: int, tolerance: float, around: str
) -> Model:
    given = torch.tensor([weight[name] for name in sorted(specialists)], dtype=torch.float64)
    weights = given / given.sum()

    def merge(start: Tensor, tensors: list[Tensor]) -> Tensor:
        centre = start if around == "base" else torch.zeros_like(start)
        rays = torch.stack([tensor - centre for tensor in tensors])
        units = rays / rays.norm(dim=1, keepdim=True)
        mean = weights @ units
        mean = mean / mean.norm()
        for _ in range(steps):
            angles = torch.acos((units @ mean).clamp(-1, 1))
            pulls = torch.where(angles < tolerance, 0.0, weights * angles / angles.sin().clamp(1e-30))
            step = pulls @ (units - angles.cos()[:, None] * mean)
            if step.norm() < tolerance:
                break
            mean = step.norm().cos() * mean + step.norm().sin() * step / step.norm()
            mean = mean / mean.norm()
        return centre + (weights @ rays.norm(dim=1)) * mean

    return in_each_tensor(base, specialists, merge)


def by_matrices(
    base: Model,
    specialists: dict[str, Model],
    scales: list[float],
    of_matrices: Callable[[list[Tensor]], list[Tensor]],
) -> Model:
    """The base, and scaled what stands for the task vectors in float64: of other tensors than matrices, the mean."""
    vectors = task_vectors(base, specialists)
    merged = {}
    for name in filter(is_merged, base):
        doubles = [vector[name].double() for vector in vectors]
        is_matrix = doubles[0].dim() == 2 and 1 not in doubles[0].shape
        new = of_matrices(doubles) if is_matrix else [double / len(doubles) for double in doubles]
        if len(scales) == 1:
            new = [sum(new)]
        merged[name] = (base[name].double() + sum(s * one for s, one in zip(scales, new))).bfloat16()
    return merged


def polar(matrix: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def tsv_m(base: Model, specialists: dict[str, Model], scaling_coef: dict[str, float]) -> Model:
    def of_matrices(vectors: list[Tensor]) -> list[Tensor]:
        kept = max(1, min(vectors[0].shape) // len(vectors))
        svds = [torch.linalg.svd(vector, full_matrices=False) for vector in vectors]
        left = polar(torch.cat([u[:, :kept] for u, _, _ in svds], dim=1))
        right = polar(torch.cat([v[:kept] for _, _, v in svds], dim=0))
        places = [slice(k * kept, (k + 1) * kept) for k in range(len(vectors))]
        return [left[:, at] @ torch.diag(s[:kept]) @ right[at] for at, (_, s, _) in zip(places, svds)]

    return by_matrices(base, specialists, [scaling_coef[k] for k in sorted(specialists)], of_matrices)


def iso_c(base: Model, specialists: dict[str, Model], scaling_coef: float) -> Model:
    def of_matrices(vectors: list[Tensor]) -> list[Tensor]:
        total = sum(vectors)
        return [torch.linalg.svdvals(total).mean() * polar(total)]

    return by_matrices(base, specialists, [scaling_coef], of_matrices)


def iso_cts(base: Model, specialists: dict[str, Model], scaling_coef: float, common_space_fraction: float) -> Model:
    def of_matrices(vectors: list[Tensor]) -> list[Tensor]:
        r, count = min(vectors[0].shape), len(vectors)
        own = min(round((r - math.floor(r * common_space_fraction)) / count), r // count)
        u, s, v = torch.linalg.svd(sum(vectors), full_matrices=False)
        us, ss, vs = [u[:, : r - count * own]], [s[: r - count * own]], [v[: r - count * own]]
        for vector in vectors:
            u, s, v = torch.linalg.svd(vector - us[0] @ us[0].T @ vector, full_matrices=False)
            us, ss, vs = [*us, u[:, :own]], [*ss, s[:own]], [*vs, v[:own]]
        return [torch.cat(ss).mean() * polar(torch.cat(us, dim=1)) @ polar(torch.cat(vs, dim=0))]

    return by_matrices(base, specialists, [scaling_coef], of_matrices)


def lines(base: Model, specialists: dict[str, Model], alpha: dict[str, float], beta: dict[str, float]) -> Model:
    """Of two layers: the first, and what comes with the last."""
    first = task_arithmetic(base, specialists, alpha)
    last = task_arithmetic(base, specialists, {k: alpha[k] + beta[k] for k in alpha})
    return {name: first[name] if ".layers.0." in name else tensor for name, tensor in last.items()}


def ram(base: Model, specialists: dict[str, Model], epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Model:
    merged = {}
    for name in filter(is_merged, base):
        vectors = torch.stack([vector[name].float() for vector in task_vectors(base, specialists)])
        moved = vectors.abs() > epsilon
        count = moved.sum(0)
        total = torch.zeros(base[name].shape)
        for vector, moves in zip(vectors, moved):
            alone, shared = moves & (count == 1), moves & (count > 1)
            more = 1 + r * min(float(shared.sum()) / max(float(alone.sum()), epsilon), alpha)
            total += more * vector * alone + vector * shared / count.clamp(min=1)
        merged[name] = total
    return finish(base, merged)


def ram_plus(base: Model, specialists: dict[str, Model], epsilon: float, r: float, alpha: float) -> Model:
    return ram(base, specialists, epsilon, r, alpha)


def sce(
    base: Model, specialists: dict[str, Model], select_topk: float, alike_below: float, scaling_coef: float
) -> Model:
    merged = {}
    for name in filter(is_merged, base):
        vectors = torch.stack([vector[name].float().flatten() for vector in task_vectors(base, specialists)])
        if select_topk < 1:
            variance = vectors.var(0, unbiased=False).bfloat16()
            kept = math.floor((variance > 0).sum() * select_topk)
            vectors = vectors * (variance >= variance.sort().values[len(variance) - kept]) if kept else 0 * vectors
        squares = vectors.double().square().mean(1)
        weigh = squares.sum() > 0 and squares.sum() >= alike_below
        weights = squares / squares.sum() if weigh else torch.ones(len(vectors)) / len(vectors)
        agree = vectors.sign() == torch.where(vectors.sum(0) >= 0, 1.0, -1.0)
        of_entries = weights.float()[:, None] * agree
        merged[name] = scaling_coef * ((vectors * of_entries).sum(0) / of_entries.sum(0).clamp(min=1e-6)).view(
            base[name].shape
        )
    return finish(base, merged)
