"""What `mergebench-ray merge RECIPE.yml` writes beside what `mergekit-yaml RECIPE.yml` writes, from the same files.

    python benchmarks/mergekit_outputs.py --mergekit VENV/bin/mergekit-yaml

Small random models in bf16; embeddings and output head are merged, too. For each recipe: the largest relative distance
of a tensor, and the share of entries that are more than one bf16 number apart; most of these are near zero, where one
number is less than a rounding of what was added up to it: the last column leaves those out. Of entries as large as the
smallest that is kept mergekit keeps as many as it needs, `mergebench-ray` all, and where entries cancel out but for
rounding either sign may be elected: these are counted by themselves, and left out of the other columns. Where both draw
masks of their own, nothing is dropped.
"""

from __future__ import annotations

import argparse
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
FLOAT32 = {"dtype": "float32", "out_dtype": "bfloat16"}
BFLOAT16 = {"dtype": "bfloat16"}
BASE = {"base_model": "./base"}
FILTERS = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0.5, 0]}, {"value": 0.5}]


def models(*own: dict[str, Any]) -> list[dict[str, Any]]:
    """Specialists with parameters of their own."""
    return [{"model": f"./{number}", "parameters": one} for number, one in enumerate(own)]


def each(count: int = 3, **parameters: Any) -> list[dict[str, Any]]:
    """So many specialists, each with its weight and these parameters."""
    return models(*({"weight": weight, **parameters} for weight in WEIGHTS[:count]))


ALL = models({}, {}, {})
MIXED = models(
    {"weight": 0.6, "density": [1, 0.7, 0.3]},
    {"weight": [0.1, 0.4, 1.0], "density": 0.5},
    {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}], "density": 0.33},
)
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": each(), **FLOAT32},
    "linear on gradients, bf16": {
        "merge_method": "linear",
        "models": models({"weight": [1, 0.2]}, {"weight": [0, 0.8]}),
        **BFLOAT16,
    },
    "linear, not normalised": {
        "merge_method": "linear",
        "models": each(),
        "parameters": {"normalize": False},
        **FLOAT32,
    },
    "task arithmetic": {"merge_method": "task_arithmetic", "models": each(), **BASE, **FLOAT32},
    "task arithmetic, bf16": {"merge_method": "task_arithmetic", "models": each(), **BASE, **BFLOAT16},
    "task arithmetic, normalised, lambda": {
        "merge_method": "task_arithmetic",
        "models": models({"weight": [0.2, 1]}, {"weight": 0.5}),
        "parameters": {"normalize": True, "lambda": 0.7},
        **BASE,
        **FLOAT32,
    },
    "task arithmetic in float32": {"merge_method": "task_arithmetic", "models": each(), **BASE, "dtype": "float32"},
    "TIES": {"merge_method": "ties", "models": each(density=0.4), **BASE, **FLOAT32},
    "TIES, bf16": {"merge_method": "ties", "models": each(density=0.4), **BASE, **BFLOAT16},
    "TIES, gradients and filters": {"merge_method": "ties", "models": MIXED, **BASE, **FLOAT32},
    "TIES, a sum, rescaled, lambda": {
        "merge_method": "ties",
        "models": each(density=0.4),
        "parameters": {"normalize": False, "rescale": True, "lambda": 0.8},
        **BASE,
        **FLOAT32,
    },
    "DARE-TIES, nothing dropped": {"merge_method": "dare_ties", "models": each(), **BASE, **FLOAT32},
    "DARE, linear, nothing dropped": {"merge_method": "dare_linear", "models": each(), **BASE, **FLOAT32},
    "DELLA, nothing dropped": {"merge_method": "della", "models": each(), **BASE, **FLOAT32},
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "models": each(density=0.6, gamma=0.05),
        "parameters": {"lambda": 0.7},
        **BASE,
        **FLOAT32,
    },
    "breadcrumbs with TIES, rescaled": {
        "merge_method": "breadcrumbs_ties",
        "models": each(density=0.6, gamma=0.05),
        "parameters": {"normalize": True, "rescale": True},
        **BASE,
        **FLOAT32,
    },
    "SCE": {"merge_method": "sce", "models": ALL, **BASE, **FLOAT32},
    "SCE, a third": {
        "merge_method": "sce",
        "models": ALL,
        "parameters": {"select_topk": 0.3},
        **BASE,
        **FLOAT32,
    },
    "RAM": {"merge_method": "ram", "models": ALL, "parameters": {"epsilon": 0.001}, **BASE, **FLOAT32},
    "RAM+": {"merge_method": "ramplus_tl", "models": ALL, "parameters": {"epsilon": 0.001}, **BASE, **FLOAT32},
    "model stock": {"merge_method": "model_stock", "models": ALL, **BASE, **FLOAT32},
    "SLERP by filters": {
        "merge_method": "slerp",
        "models": [{"model": "./base"}, {"model": "./0"}],
        "parameters": {"t": FILTERS},
        **BASE,
        **FLOAT32,
    },
    "SLERP, bf16": {
        "merge_method": "slerp",
        "models": [{"model": "./0"}],
        "parameters": {"t": 0.3},
        **BASE,
        **BFLOAT16,
    },
    "NuSLERP": {"merge_method": "nuslerp", "models": each(2), **BASE, **FLOAT32},
    "NuSLERP without a base": {"merge_method": "nuslerp", "models": each(2), **FLOAT32},
    "multi-SLERP": {"merge_method": "multislerp", "models": each(), **BASE, **FLOAT32},
    "multi-SLERP without a base": {"merge_method": "multislerp", "models": each(), **FLOAT32},
    "Karcher mean": {"merge_method": "karcher", "models": ALL, **FLOAT32},
}


def main(mergekit: Path, only: str) -> None:
    """Print the table."""
    print("| recipe | furthest tensor | more than one number apart | beside rounding of the sum | at ties |")
    print("| --- " * 5 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up_models(folder)
        for number, (title, recipe) in enumerate(RECIPES.items()):
            if only not in title:
                continue
            file = folder / f"{number}.yml"
            file.write_text(yaml.safe_dump(recipe, sort_keys=False))
            ours = written([sys.executable, "-m", "mergebench_ray", "merge", file, "--out"], folder, f"ours-{number}")
            theirs = written([mergekit, file], folder, f"theirs-{number}")
            print(f"| {title} | {compared(folder, ours, theirs, recipe)} |", flush=True)


def made_up_models(folder: Path) -> None:
    """A base, and specialists that are it with noise."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
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
        model.save_pretrained(folder / f"{number}")


def written(command: list[Any], folder: Path, out: str) -> dict[str, Tensor]:
    """The tensors that a command writes to a folder."""
    done = subprocess.run([*command, out], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr[-1500:]}")
    return tensors(folder / out)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def at_ties(folder: Path, recipe: dict[str, Any]) -> dict[str, Tensor]:
    """Which entries are as large as the last ones kept of a tensor, or, weighted, cancel out but for rounding."""
    start, tied = tensors(folder / "base"), {}
    method = recipe["merge_method"]
    elects = method.endswith("ties") or method in ("sce", "della")
    found = {one["model"]: tensors(folder / one["model"]) for one in recipe["models"]}
    for name, tensor in start.items():
        tied[name] = torch.zeros(tensor.shape, dtype=torch.bool)
        kept_entries = []
        for one in recipe["models"]:
            density, gamma, weight = (of(one, what, name, or_else) for what, or_else in DEFAULTS.items())
            vector = found[one["model"]][name].float() - tensor.float()
            magnitude, count = vector.abs(), vector.numel()
            kept = int(density * count)
            below = max(0, count - kept - int(gamma * count))
            least, most = magnitude.flatten().sort().values[[below, below + kept - 1]]
            if kept < count:  # but for the rounding of task vectors
                tied[name] |= torch.isin(magnitude.bfloat16(), torch.stack([least, most]).bfloat16())
            kept_entries.append(weight * vector * (magnitude >= least) * (magnitude <= most))
        entries = torch.stack(kept_entries)
        if "select_topk" in recipe.get("parameters", {}):
            variances = entries.var(0, unbiased=False).bfloat16()
            selected = int((variances > 0).sum() * recipe["parameters"]["select_topk"])
            least = variances.flatten().sort().values[-max(selected, 1)]
            tied[name] |= (places(variances) - places(least)).abs() <= 1
        if elects:
            tied[name] |= (entries.sum(0).abs() <= 2**-7 * entries.abs().sum(0)) & (entries.abs().sum(0) > 0)
    return tied


DEFAULTS = {"density": 1.0, "gamma": 0.0, "weight": 1.0}


def of(model: dict[str, Any], parameter: str, name: str, default: float) -> float:
    """A parameter of a model in a tensor of three layers."""
    value = model.get("parameters", {}).get(parameter, default)
    if isinstance(value, list) and isinstance(value[0], dict):
        value = next(rule["value"] for rule in value if rule.get("filter", "") in name)
    if not isinstance(value, list):
        return float(value)
    layer = int(name.split(".layers.")[1].split(".")[0]) if ".layers." in name else 0
    at = layer / 2 * (len(value) - 1)
    rest = at - int(at)
    return (1 - rest) * value[int(at)] + rest * value[min(int(at) + 1, len(value) - 1)]


def compared(folder: Path, ours: dict[str, Tensor], theirs: dict[str, Tensor], recipe: dict[str, Any]) -> str:
    """The columns of the table."""
    if {name: one.dtype for name, one in ours.items()} != {name: one.dtype for name, one in theirs.items()}:
        raise SystemExit("other tensors, or of other types")
    is_trimmed = "density" in str(recipe) or recipe["merge_method"] in ("sce", "ties", "dare_ties", "della")
    tied = at_ties(folder, recipe) if is_trimmed else {}
    inputs = [tensors(folder / one) for one in {"./base", *(one["model"] for one in recipe["models"])}]
    beyond, further, at_tie, count, relative = 0, 0, 0, 0, 0.0
    for name, one in ours.items():
        other, left = theirs[name], ~tied[name] if tied else torch.ones(one.shape, dtype=torch.bool)
        apart = ((places(one) - places(other)).abs() > 1) & left
        # One number of the largest that went into an entry.
        step = 2**-7 * torch.stack([model[name].float().abs() for model in inputs]).amax(0)
        beyond, count = beyond + int(apart.sum()), count + one.numel()
        further += int((apart & ((one.float() - other.float()).abs() > step)).sum())
        at_tie += int((~left).sum())
        distance = (one.double() - other.double()) * left
        relative = max(relative, float(distance.norm() / other.double().norm()))
    return f"{relative:.1e} | {beyond / count:.1%} | {further / count:.1%} | {at_tie / count:.1%}"


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
