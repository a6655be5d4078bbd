"""Whether weights that are loaded into a running vLLM answer as in transformers, family by family.

    python benchmarks/families_in_place.py [FAMILY ...]

Each family is a tiny random model in a process of its own, unless asked otherwise. A 6-token log-probability after 40
tokens is asked of the base, of a merged candidate, of a specialist whose embeddings differ too and whose tensors come
one by one, and of the base again, in float32 on both sides; the table holds the differences from transformers, and of
the candidate from an engine that starts with it, which counts where vLLM and transformers disagree on the base itself.
The engine proves itself first, as in a sweep; the last column says what that proof would have found if vLLM's packed
copies were left alone. Exit status 1 if a difference is above 1e-3; a family that this build of vLLM does not run has
its reason in the table. What it runs in bfloat16 alone is held to its own answers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from tiny_architectures import ARCHITECTURES, TIED, Architecture

LIMIT = 1e-3
FAMILIES = {**ARCHITECTURES, "Llama, padded vocabulary": Architecture("Llama", {**TIED, "vocab_size": 301})}
BFLOAT16_ALONE = {"Qwen3-Next", "Qwen3.5", "Qwen3.5, multimodal", "Qwen3.5 MoE"}
"""VLLM's gated delta network on a CPU."""
CONTEXT = [1, *range(10, 49)]
CELLS = ["base", "candidate", "specialist", "base again", "candidate, cold"]
ANSWER = [50, 60, 70, 80, 90, 100]


def main() -> None:
    parser = argparse.ArgumentParser(description="weights loaded in place against transformers, by family")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"some of: {'; '.join(FAMILIES)}")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    parser.add_argument("--warm", action="store_true", help="start no engine with the candidate")
    parser.add_argument("--together", action="store_true", help="one process for all of them: vLLM is imported once")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, warm=arguments.warm)))
        return
    chosen = arguments.families or list(FAMILIES)
    if unknown := set(chosen) - set(FAMILIES):
        parser.error(f"unknown families: {', '.join(sorted(unknown))}")
    results = {}
    if not arguments.json:
        print(f"| family | {' | '.join(CELLS)} | proof | without packing again |\n|{' --- |' * (len(CELLS) + 3)}")
    for family in chosen:
        if arguments.together:
            results[family] = measure(family, warm=arguments.warm)
        else:
            results[family] = in_a_process_of_its_own(family, ["--warm"] * arguments.warm)
        if not arguments.json:
            print(row(family, results[family]), flush=True)
    if arguments.json:
        print(json.dumps(results))
    sys.exit(int(not all(is_right(result["errors"]) for result in results.values())))


def is_right(errors: Mapping[str, float]) -> bool:
    """Whether loads did what they should; where the base itself is not as in transformers, that is vLLM's affair."""
    as_transformers = errors.get("base", 0.0) <= LIMIT
    return all(error <= LIMIT for cell, error in errors.items() if as_transformers or cell == CELLS[-1])


def row(family: str, result: dict[str, Any]) -> str:
    if result["refused"]:
        return f"| {family} |{' |' * len(CELLS)} {result['refused']} | |"
    errors = " | ".join(f"{result['errors'][cell]:.0e}" if cell in result["errors"] else "" for cell in CELLS)
    return f"| {family} | {errors} | {result['proof']} | {result['broken']} |"


def in_a_process_of_its_own(family: str, options: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, __file__, *options, "--one", family]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if done.returncode:
            log.seek(0)
            sys.exit(f"{family}: {log.read()[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(family: str, *, warm: bool) -> dict[str, Any]:
    """Errors in nats, what the proof says, and what it would say if nothing were packed again; or why vLLM refuses."""
    from mergebench_ray.bank import Bank
    from mergebench_ray.checkpoints import resolve
    from mergebench_ray.engines.engine_proof import prove
    from mergebench_ray.errors import InputError
    from mergebench_ray.weights.checkpoint_weights import checkpoint_weights

    with tempfile.TemporaryDirectory() as room:
        folders = FAMILIES[family].write(Path(room))
        base, first, second = (resolve(str(folder)) for folder in folders)
        bank = Bank.load(base, {"first": first, "second": second}, in_process=True)
        merged = bank.merge(bank.recipe("task_arithmetic", {"scaling_coef": 0.6}))
        written = with_weights(folders[0], dict(bank.tensors()), Path(room) / "merged")
        expected = {name: reference(family, folder) for name, folder in zip(CELLS, (folders[0], written, folders[1]))}
        dtype = "bfloat16" if family in BFLOAT16_ALONE else "float32"
        try:
            engine = started(folders[0], dtype)
            proof = prove(engine, base, 128)
        except Exception as error:  # whatever vLLM says of a model that it does not run
            return {"refused": " ".join(str(error).split())[:300], "errors": {}}
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
        expected = (
            {"base again": found["base"]} if dtype == "bfloat16" else {**expected, "base again": expected["base"]}
        )
        if not warm:
            cold = started(written, dtype)
            found["candidate, cold"], expected["candidate, cold"] = found["candidate"], ask(cold)
            cold.close()
    errors = {cell: abs(found[cell] - expected[cell]) for cell in expected}
    changed = f"{proof.changed} of {proof.tensors} changed, {proof.error:.0e}, {proof.seconds:.1f} s"
    return {"errors": errors, "proof": changed, "broken": broken, "refused": ""}


def started(folder: Path, dtype: str) -> Any:
    from mergebench_ray.config import EngineOptions
    from mergebench_ray.engines import VLLMEngine

    options = EngineOptions.model_validate({"max_num_seqs": 4, "kv_cache_gib": 0.25, "dtype": dtype})
    return VLLMEngine(folder, options, max_model_len=128)


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


def with_weights(folder: Path, weights: Mapping[str, Any], out: Path) -> Path:
    """A copy of a folder, some of whose weights are replaced by others of the same names."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    for file in out.glob("*.safetensors"):
        stored = load_file(file)
        content = {name: weights.get(name, tensor).clone() for name, tensor in stored.items()}
        save_file(content, file, metadata={"format": "pt"})
    return out


def reference(family: str, folder: Path) -> float:
    """The log-probability by transformers."""
    likelihoods = FAMILIES[family].logits(folder, [*CONTEXT, *ANSWER]).log_softmax(-1)
    start = len(CONTEXT) - 1
    return float(sum(likelihoods[start + place, token] for place, token in enumerate(ANSWER)))


if __name__ == "__main__":
    main()
