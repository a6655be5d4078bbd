"""Sixty recipes for mergekit as people write them, and what becomes of each: None where it merges, else the refusal."""

from __future__ import annotations

from itertools import chain

BASE = "base_model: ./base\n"
BF16 = "dtype: bfloat16\n"


def models(*entries: str) -> str:
    """A list of models, each with the parameters behind it: `./a weight: 0.5, density: 0.4`."""
    lines = ["models:"]
    for entry in entries:
        reference, _, parameters = entry.partition(" ")
        lines.append(f"  - model: {reference}")
        lines += [f"    parameters: {{{parameters}}}"] if parameters else []
    return "\n".join(lines) + "\n"


def merge(method: str, *entries: str, parameters: str = "", more: str = BF16) -> str:
    text = f"{models(*entries)}merge_method: {method}\n"
    return text + (f"parameters: {{{parameters}}}\n" if parameters else "") + more


SPARSE = ("./a weight: 0.5, density: 0.4", "./b weight: 0.3, density: 0.6", "./c weight: 0.4")
EACH = ("./a weight: 0.5", "./b weight: 0.3", "./c weight: 0.4")
ALL = ("./a", "./b", "./c")

PLAIN: dict[str, str] = {
    "linear": merge("linear", "./a weight: 1.0", "./b weight: 0.3", "./c weight: 0.5", more="dtype: float16\n"),
    "linear, heavy": merge("linear", "./a weight: 10", "./b weight: 30"),
    "linear, not normalised": merge("linear", *EACH, parameters="normalize: false"),
    "linear, one weight for all": merge("linear", *ALL, parameters="weight: 1.0"),
    "linear with the base": merge("linear", "./base weight: 0.2", *EACH, more=BASE + BF16),
    "task arithmetic": merge("task_arithmetic", *EACH, more=BASE + BF16),
    "task arithmetic, lambda": merge("task_arithmetic", *EACH, parameters="lambda: 0.7", more=BASE + BF16),
    "task arithmetic, normalised": merge("task_arithmetic", *EACH, parameters="normalize: true", more=BASE + BF16),
    "task arithmetic, the base listed": merge("task_arithmetic", "./base", *EACH, more=BASE + BF16),
    "TIES": merge("ties", *SPARSE, parameters="normalize: true, int8_mask: true", more=BASE + "dtype: float16\n"),
    "TIES, a sum": merge("ties", *SPARSE, parameters="normalize: false", more=BASE + BF16),
    "TIES, all alike": merge("ties", *ALL, parameters="weight: 0.5, density: 0.5", more=BASE + BF16),
    "TIES, rescaled, lambda": merge("ties", *SPARSE, parameters="rescale: true, lambda: 1.1", more=BASE + BF16),
    "TIES, density 1": merge("ties", *EACH, parameters="density: 1", more=BASE + BF16),
    "DARE-TIES": merge("dare_ties", *SPARSE, parameters="int8_mask: true", more=BASE + BF16),
    "DARE-TIES, normalised": merge("dare_ties", *SPARSE, parameters="normalize: true", more=BASE + BF16),
    "DARE, linear": merge("dare_linear", *SPARSE, more=BASE + BF16),
    "DARE, linear, not rescaled": merge("dare_linear", *SPARSE, parameters="rescale: false", more=BASE + BF16),
    "breadcrumbs": merge("breadcrumbs", *SPARSE, parameters="gamma: 0.01", more=BASE + BF16),
    "breadcrumbs, each": merge("breadcrumbs", "./a weight: 1, density: 0.9, gamma: 0.02", "./b weight: 1", more=BASE),
    "breadcrumbs with TIES": merge("breadcrumbs_ties", *SPARSE, parameters="normalize: true", more=BASE + BF16),
    "DELLA": merge("della", *SPARSE, parameters="epsilon: 0.05, lambda: 1.1", more=BASE + BF16),
    "DELLA, each": merge(
        "della", "./a weight: 1, density: 0.5, epsilon: 0.1", "./b weight: 1, density: 0.7", more=BASE
    ),
    "DELLA, linear": merge("della_linear", *SPARSE, parameters="epsilon: 0.1", more=BASE + BF16),
    "SCE": merge("sce", *ALL, more=BASE + BF16),
    "SCE, a part": merge("sce", *ALL, parameters="select_topk: 0.5", more=BASE + BF16),
    "RAM": merge("ram", *ALL, parameters="epsilon: 1e-4", more=BASE + BF16),
    "RAM+": merge("ramplus_tl", *ALL, parameters="r: 0.2, alpha: 0.3", more=BASE + BF16),
    "model stock": merge("model_stock", *ALL, more=BASE + BF16),
    "model stock, by tensor": merge("model_stock", *ALL, parameters="filter_wise: false", more=BASE + BF16),
    "SLERP": merge("slerp", "./base", "./a", parameters="t: 0.4", more=BASE + BF16),
    "SLERP, one model listed": merge("slerp", "./a", parameters="t: 0.5", more=BASE + BF16),
    "NuSLERP": merge("nuslerp", "./a weight: 0.4", "./b weight: 0.6", more=BASE + BF16),
    "NuSLERP without a base": merge("nuslerp", "./a weight: 4", "./b weight: 6"),
    "multi-SLERP": merge("multislerp", *EACH, more=BASE + BF16),
    "multi-SLERP without a base": merge("multislerp", *EACH, parameters="normalize_weights: false"),
    "Karcher mean": merge("karcher", *ALL, parameters="max_iter: 5, tol: 1e-6"),
    "Karcher mean with a base": merge("karcher", *ALL, more=BASE + BF16),
}
BY_TENSOR: dict[str, str] = {
    "gradients and filters": """
models:
  - model: ./a
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: ./b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: ./c
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: ./base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""",
    "SLERP by filters": """
slices:
  - sources:
      - model: ./base
        layer_range: [0, 2]
      - model: ./a
        layer_range: [0, 2]
merge_method: slerp
base_model: ./base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: bfloat16
""",
    "SLERP on a gradient": merge("slerp", "./base", "./b", parameters="t: [0.2, 0.5, 1]", more=BASE + BF16),
    "linear on gradients": merge("linear", "./a weight: [1, 0]", "./b weight: [0, 1]"),
    "a filter, then the merge's value": merge(
        "task_arithmetic",
        "./a weight: [{filter: mlp, value: 0.9}]",
        "./b weight: {filter: '*', value: 0.3}",
        parameters="weight: 0.2",
        more=BASE + BF16,
    ),
    "DARE-TIES on gradients": merge(
        "dare_ties", "./a weight: [0.1, 0.9], density: [0.3, 0.9]", "./b weight: 0.4", more=BASE + BF16
    ),
    "lambda by filters": merge(
        "ties", *SPARSE, parameters="lambda: [{filter: norm, value: 0.5}, {value: 1.0}]", more=BASE + BF16
    ),
    "normalised on gradients": merge(
        "task_arithmetic", "./a weight: [0.2, 1]", "./b weight: 0.5", parameters="normalize: true", more=BASE + BF16
    ),
}
OTHERWISE: dict[str, str] = {
    "no dtype": merge("ties", *SPARSE, more=BASE),
    "float32, written in bfloat16": merge("ties", *SPARSE, more=BASE + "dtype: float32\nout_dtype: bfloat16\n"),
    "float32": merge("task_arithmetic", *EACH, more=BASE + "dtype: float32\n"),
    "torch's name": merge("linear", *EACH, more="dtype: torch.bfloat16\n"),
    "tokenizer of the base": merge("ties", *SPARSE, more=f"{BASE}{BF16}tokenizer_source: base\n"),
    "tokenizer of a model": merge("linear", *EACH, more=f"{BF16}tokenizer: {{source: ./b}}\n"),
    "a chat template": merge("slerp", "./a", parameters="t: 0.5", more=f"{BASE}{BF16}chat_template: chatml\n"),
    "the usual chat template": merge("ties", *SPARSE, more=f"{BASE}{BF16}chat_template: auto\n"),
    "stray keys": merge(
        "slerp",
        "./a weight: 0.3, density: 0.5",
        parameters="t: 0.5, normalize: true, int8_mask: true",
        more=f"{BASE}{BF16}name: mine\nallow_crimes: true\n",
    ),
    "models as mappings": merge("linear", *EACH, more="").replace("model: ./a", "model: {model: {path: ./a}}"),
}
REFUSED: dict[str, tuple[str, str]] = {
    "slices": (
        "slices:\n  - sources: [{model: ./a, layer_range: [0, 1]}]\n  - sources: [{model: ./b, layer_range: [1, 2]}]\n"
        "merge_method: passthrough\n",
        "slices: takes layers apart",
    ),
    "passthrough": (merge("passthrough", "./a"), "merge_method passthrough: copies layers"),
    "a union of vocabularies": (
        merge("linear", *EACH, more="tokenizer_source: union\n"),
        "tokenizer_source: union puts vocabularies together",
    ),
    "rows on circles of their own": (
        merge("nuslerp", "./a weight: 1", "./b weight: 1", parameters="nuslerp_flatten: false"),
        "nuslerp_flatten: only true is known here",
    ),
}
RUN = {**PLAIN, **BY_TENSOR, **OTHERWISE}
ALL_RECIPES = [*RUN, *REFUSED]
assert len(ALL_RECIPES) == len({*chain(RUN, REFUSED)})
