"""Whether weights that are loaded into a running vLLM answer as in transformers, family by family.

    python benchmarks/families_in_place.py [FAMILY ...]

Each family is a tiny random model in a process of its own. A 6-token log-probability after 40 tokens is asked of the
base, of a merged candidate, of a specialist whose embeddings differ too and whose tensors come one by one, and of the
base again, in float32 on both sides; the table holds the differences. The engine proves itself first, as in a sweep;
the last column says what that proof would have found if vLLM's packed copies were left alone. Exit status 1 if a
difference is above 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

LIMIT = 1e-3
SMALL = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": 64, "sliding_window": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied": ("Llama", {}),
    "llama, padded vocabulary": ("Llama", {"vocab_size": 301, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "gemma-2": ("Gemma2", GEMMA),
    "gemma-3": ("Gemma3Text", GEMMA),
    "mistral": ("Mistral", {}),
    "phi-3": ("Phi3", {}),
    "qwen3-moe": ("Qwen3Moe", EXPERTS),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
CONTEXT = [1, *range(10, 49)]
ANSWER = [50, 60, 70, 80, 90, 100]


def main() -> None:
    parser = argparse.ArgumentParser(description="weights loaded in place against transformers, by family")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"some of: {'; '.join(FAMILIES)}")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    chosen = arguments.families or list(FAMILIES)
    if unknown := set(chosen) - set(FAMILIES):
        parser.error(f"unknown families: {', '.join(sorted(unknown))}")
    results = {}
    cells = ["base", "candidate", "specialist", "base again"]
    if not arguments.json:
        print(f"| family | {' | '.join(cells)} | proof | without packing again |\n|{' --- |' * 7}")
    for family in chosen:
        results[family] = in_a_process_of_its_own(family)
        if not arguments.json:
            errors = " | ".join(f"{results[family]['errors'][cell]:.0e}" for cell in cells)
            print(f"| {family} | {errors} | {results[family]['proof']} | {results[family]['broken']} |", flush=True)
    if arguments.json:
        print(json.dumps(results))
    sys.exit(int(any(error > LIMIT for result in results.values() for error in result["errors"].values())))


def in_a_process_of_its_own(family: str) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, __file__, "--one", family]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if done.returncode:
            log.seek(0)
            sys.exit(f"{family}: {log.read()[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(family: str) -> dict[str, Any]:
    """Errors in nats, what the proof says, and what it would say if nothing were packed again."""
    from mergebench_ray.bank import Bank
    from mergebench_ray.checkpoints import resolve
    from mergebench_ray.config import EngineOptions
    from mergebench_ray.engines import VLLMEngine
    from mergebench_ray.engines.engine_proof import prove
    from mergebench_ray.errors import InputError
    from mergebench_ray.weights.checkpoint_weights import checkpoint_weights

    with tempfile.TemporaryDirectory() as room:
        folders = make_models(family, Path(room))
        base, first, second = (resolve(str(folder)) for folder in folders)
        bank = Bank.load(base, {"first": first, "second": second}, in_process=True)
        merged = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": 0.6}))
        expected = {"base": reference(folders[0]), "specialist": reference(folders[1])}
        expected |= {"base again": expected["base"], "candidate": reference(folders[0], dict(bank.tensors()))}
        options = EngineOptions(max_num_seqs=4, kv_cache_gib=0.25, dtype="float32")
        engine = VLLMEngine(folders[0], options, max_model_len=128)
        proof = prove(engine, base, 128)
        found = {"base": ask(engine)}
        engine.load(merged.manifest)
        found["candidate"] = ask(engine)
        # Each tensor in a bucket of its own, so that those of a fused module never come together.
        engine.load(replace(checkpoint_weights(first, base), bucket_bytes=1))
        found["specialist"] = ask(engine)
        engine.restore_base()
        found["base again"] = ask(engine)
        with nothing_packed_again():
            try:
                broken = f"{prove(engine, base, 128).error:.0e}"
            except InputError as error:
                broken = "refused, off by " + str(error).split("off by ")[-1].split()[0]
        engine.close()
    errors = {cell: abs(found[cell] - expected[cell]) for cell in found}
    changed = f"{proof.changed} of {proof.tensors} changed, {proof.error:.0e}, {proof.seconds:.1f} s"
    return {"errors": errors, "proof": changed, "broken": broken}


@contextmanager
def nothing_packed_again() -> Iterator[None]:
    """VLLM as it comes."""
    from mergebench_ray.engines.repacking import Received
    from mergebench_ray.engines.transports import mapped

    @contextmanager
    def only_vllm(_model: Any) -> Iterator[Received]:
        yield Received()

    kept, mapped.packed_again = mapped.packed_again, only_vllm
    try:
        yield
    finally:
        mapped.packed_again = kept


def ask(engine: Any) -> float:
    from mergebench_ray.engines import LoglikelihoodRequest

    return float(engine.loglikelihood([LoglikelihoodRequest(CONTEXT, ANSWER)])[0][0])


def make_models(family: str, room: Path) -> list[Path]:
    """A base and two specialists, in which every parameter differs from the base's."""
    import torch
    import transformers

    name, changes = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **changes})
    folders = [room / part for part in ("base", "first", "second")]
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).to(torch.bfloat16)
    for folder in folders:
        if folder != folders[0]:
            for parameter in model.parameters():
                parameter.data += torch.randn_like(parameter.data.float()).to(torch.bfloat16) * 0.05
        model.save_pretrained(folder)
        write_tokenizer(folder)
    return folders


def write_tokenizer(folder: Path) -> None:
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def reference(folder: Path, weights: Mapping[str, Any] | None = None) -> float:
    """The log-probability by transformers, from a folder whose weights are replaced by others of the same names."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as room:
        if weights is not None:
            for file in folder.iterdir():
                (Path(room) / file.name).write_bytes(file.read_bytes())
            stored = load_file(folder / "model.safetensors") | weights
            content = {name: tensor.clone() for name, tensor in stored.items()}
            save_file(content, Path(room) / "model.safetensors", metadata={"format": "pt"})
        where = folder if weights is None else Path(room)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    with torch.no_grad():
        likelihoods = model(torch.tensor([[*CONTEXT, *ANSWER]])).logits[0].log_softmax(-1)
    start = len(CONTEXT) - 1
    return float(sum(likelihoods[start + place, token] for place, token in enumerate(ANSWER)))


if __name__ == "__main__":
    main()
