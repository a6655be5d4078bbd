"""What `mergebench-ray merge` writes beside what `mergekit-yaml` writes, for the methods that both have.

    python benchmarks/mergekit_outputs.py --mergekit VENV/bin/mergekit-yaml

Small random models in bf16, merged in float32, written in bf16. For each recipe: the largest relative distance of a
tensor, and the share of entries that are more than one bf16 number apart, those near zero, since task vectors are bf16.
Of entries as large as the smallest that is kept mergekit keeps as many as it needs, `mergebench-ray` all, and where
entries cancel out but for rounding either sign may be elected: these are counted by themselves. Embeddings
and output head are left out, which `mergebench-ray` takes from the base, as MergeBench does. Where both draw masks of
their own, nothing is dropped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

WEIGHTS = [0.3, 0.5, 0.4]
# name -> our method and settings, mergekit's method and parameters of the merge, how many specialists, and whether each
# has one of WEIGHTS, by mergekit's name
RECIPES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], int, str]] = {
    "linear": ("linear", {}, "linear", {}, 3, "weight"),
    "linear, not normalised": ("linear", {"normalize": False}, "linear", {"normalize": False}, 3, "weight"),
    "task arithmetic": ("task_arithmetic", {}, "task_arithmetic", {"normalize": False}, 3, "weight"),
    "TIES": (
        "ties",
        {"trim": "tensor", "density": 0.4, "merge_func": "mean", "scaling_coef": 1.0},
        "ties",
        {"density": 0.4},
        3,
        "weight",
    ),
    "DARE-TIES, nothing dropped": (
        "dare_ties",
        {"density": 1.0, "scaling_coef": 1.0},
        "dare_ties",
        {"density": 1.0},
        3,
        "weight",
    ),
    "breadcrumbs": (
        "breadcrumbs",
        {"density": 0.6, "gamma": 0.05, "scaling_coef": 0.7},
        "breadcrumbs",
        {"density": 0.6, "gamma": 0.05, "lambda": 0.7},
        3,
        "weight",
    ),
    "breadcrumbs with TIES, rescaled": (
        "breadcrumbs_ties",
        {"density": 0.6, "gamma": 0.05, "scaling_coef": 1.0, "normalize": True, "rescale": True},
        "breadcrumbs_ties",
        {"density": 0.6, "gamma": 0.05, "normalize": True, "rescale": True},
        3,
        "weight",
    ),
    "SCE": ("sce", {"alike_below": 1e-6}, "sce", {}, 3, ""),
    "SCE, a third": ("sce", {"select_topk": 0.3, "alike_below": 1e-6}, "sce", {"select_topk": 0.3}, 3, ""),
    "RAM": ("ram", {"epsilon": 0.001}, "ram", {"epsilon": 0.001}, 3, ""),
    "RAM+": ("ram_plus", {"epsilon": 0.001}, "ramplus_tl", {"epsilon": 0.001}, 3, ""),
    "model stock": ("model_stock", {}, "model_stock", {}, 3, ""),
    "SLERP": ("slerp", {"t": 0.3}, "slerp", {"t": 0.3}, 1, ""),
    "NuSLERP": ("nuslerp", {}, "nuslerp", {}, 2, "weight"),
    "NuSLERP around zero": ("nuslerp", {"around": "zero"}, "nuslerp", {}, 2, "weight"),
    "multi-SLERP": ("multislerp", {}, "multislerp", {}, 3, "weight"),
    "multi-SLERP around zero": ("multislerp", {"around": "zero"}, "multislerp", {}, 3, "weight"),
    "Karcher mean": ("karcher", {}, "karcher", {}, 3, ""),
}
WEIGHT = {"task_arithmetic": "scaling_coef"}  # what ours calls the weights, where it calls them otherwise
WITHOUT_BASE = {"linear", "karcher"}  # of mergekit's, also those whose name says "around zero"


def main(mergekit: Path, only: str) -> None:
    """Print the table."""
    print("| recipe | furthest tensor | entries more than one number apart | at ties |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, specialists = made_up_models(folder)
        for title, (method, settings, theirs, parameters, count, weighed) in RECIPES.items():
            if only not in title:
                continue
            some = specialists[:count]
            weights = WEIGHTS[:count] if weighed else []
            ours = merge(folder / "ours" / title, method, settings, base, some, weights)
            around_zero = theirs in WITHOUT_BASE or "zero" in title
            other = merge_by_mergekit(
                mergekit, folder / "theirs" / title, theirs, parameters, None if around_zero else base, some, weights
            )
            tied = {}
            if "density" in parameters:
                tied = at_ties(base, some, parameters, WEIGHTS[:count], elects=theirs.endswith("ties"))
            if theirs == "sce":
                tied = at_ties(base, some, {"density": 1.0} | parameters, [1.0] * count, elects=True)
            print(f"| {title} | {compared(ours, other, tied)} |", flush=True)


def made_up_models(folder: Path) -> tuple[Path, list[Path]]:
    """A base, and specialists that are it with noise."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number in range(3):
        torch.manual_seed(number + 1)
        changed = {name: tensor + 0.001 * (number + 1) * torch.randn(tensor.shape) for name, tensor in whole.items()}
        model.load_state_dict(changed)
        model.save_pretrained(folder / f"specialist_{number}")
    return folder / "base", [folder / f"specialist_{number}" for number in range(3)]


def merge(
    out: Path, method: str, settings: dict[str, Any], base: Path, specialists: list[Path], weights: list[float]
) -> dict[str, Tensor]:
    """Our merge's tensors."""
    given = [item for one in specialists for item in ("--specialist", f"{one.name}={one}")]
    if weights:
        names = (one.name for one in specialists)
        settings = settings | {WEIGHT.get(method, "weight"): dict(zip(names, weights))}
    chosen = [item for name, value in settings.items() for item in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "mergebench_ray", "merge", "--method", method, "--base", base, *given, *chosen]
    subprocess.run([*command, "--out", out], check=True, capture_output=True)
    return tensors(out)


def merge_by_mergekit(
    program: Path,
    out: Path,
    method: str,
    parameters: dict[str, Any],
    base: Path | None,
    specialists: list[Path],
    weights: list[float],
) -> dict[str, Tensor]:
    """Mergekit's tensors for the same merge."""
    own = [{"parameters": {"weight": weight}} for weight in weights] or [{} for _ in specialists]
    models: list[dict[str, Any]] = [{"model": str(one), **some} for one, some in zip(specialists, own, strict=True)]
    recipe: dict[str, Any] = {"merge_method": method, "parameters": parameters, "dtype": "float32"}
    recipe |= {"out_dtype": "bfloat16"}
    if method == "slerp":
        models.insert(0, {"model": str(base)})
    if base is not None:
        recipe["base_model"] = str(base)
    out.mkdir(parents=True)
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe | {"models": models}))
    done = subprocess.run([program, file, out], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{file}: {done.stderr[-1500:]}")
    return tensors(out)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def at_ties(
    base: Path, specialists: list[Path], parameters: dict[str, Any], weights: list[float], elects: bool
) -> dict[str, Tensor]:
    """Which entries are as large as the last ones kept of a tensor, or, weighted, cancel out but for rounding."""
    start, tied = tensors(base), {}
    models = [tensors(one) for one in specialists]
    for name, tensor in start.items():
        tied[name] = torch.zeros(tensor.shape, dtype=torch.bool)
        kept_entries = []
        for weight, model in zip(weights, models, strict=True):
            vector = model[name].float() - tensor.float()
            magnitude, count = vector.abs(), vector.numel()
            kept = int(parameters["density"] * count)
            below = max(0, count - kept - int(parameters.get("gamma", 0.0) * count))
            least, most = magnitude.flatten().sort().values[[below, below + kept - 1]]
            if kept < count:  # but for the rounding of task vectors
                tied[name] |= torch.isin(magnitude.bfloat16(), torch.stack([least, most]).bfloat16())
            kept_entries.append(weight * vector * (magnitude >= least) * (magnitude <= most))
        entries = torch.stack(kept_entries)
        if "select_topk" in parameters:
            variances = entries.var(0, unbiased=False).bfloat16()
            selected = int((variances > 0).sum() * parameters["select_topk"])
            least = variances.flatten().sort().values[-max(selected, 1)]
            tied[name] |= (places(variances) - places(least)).abs() <= 1
        if elects:
            tied[name] |= (entries.sum(0).abs() <= 2**-8 * entries.abs().sum(0)) & (entries.abs().sum(0) > 0)
    return tied


def compared(ours: dict[str, Tensor], theirs: dict[str, Tensor], tied: dict[str, Tensor]) -> str:
    """The columns of the table; entries at ties are counted, and left out of the others."""
    if set(ours) != set(theirs):
        raise SystemExit(f"other tensors: {sorted(set(ours) ^ set(theirs))[:5]}")
    beyond, at_tie, count, relative = 0, 0, 0, 0.0
    for name, one in ours.items():
        if "embed" in name or "lm_head" in name:
            continue
        other, left = theirs[name], ~tied[name] if tied else torch.ones(one.shape, dtype=torch.bool)
        steps = (places(one) - places(other)).abs()
        beyond, count = beyond + int(((steps > 1) & left).sum()), count + one.numel()
        at_tie += int((~left).sum())
        distance = (one.double() - other.double()) * left
        relative = max(relative, float(distance.norm() / other.double().norm()))
    return f"{relative:.1e} | {beyond / count:.1%} | {at_tie / count:.1%}"


def places(tensor: Tensor) -> Tensor:
    """Whole numbers in the order of bf16 values, one apart where those are next to each other."""
    bits = tensor.to(torch.bfloat16).view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True)
    parser.add_argument("--only", default="", help="recipes with this in their names")
    arguments = parser.parse_args()
    main(arguments.mergekit, arguments.only)
