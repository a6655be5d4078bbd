"""GGUF files, dequantised once by transformers into bf16 safetensors in the cache."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.architecture import has_tied_head
from mergebench_ray.checkpoints.cache import cache_folder, one_at_a_time
from mergebench_ray.checkpoints.checkpoint import Progress
from mergebench_ray.checkpoints.digest import file_digest
from mergebench_ray.checkpoints.roles import is_output_head
from mergebench_ray.checkpoints.tensor_files import write_tensors, written_dtype
from mergebench_ray.errors import InputError
from mergebench_ray.files import whole_folder

_MAGIC = b"GGUF"
_MAX_FILE_BYTES = 5 << 30


def dequantise(file: Path, progress: Progress | None = None) -> Path:
    """The folder with a GGUF file's weights in bf16, configuration, tokenizer, chat template and generation settings.

    Made at the first call and keyed by the file's digest; needs memory for the whole model that once. Safe for several
    processes at a time: one converts, the others wait for it.

    Raises:
        InputError: if the file is not GGUF, or transformers cannot load it.
    """
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{file}: not a GGUF file; check the path or fetch it again")
    root = cache_folder("gguf")
    digest = file_digest(file)
    folder = root / digest
    if folder.is_dir():
        return folder
    with one_at_a_time(root / f"{digest}.lock"):
        if not folder.is_dir():
            if progress is not None:
                progress(0.0, f"dequantising {file.name} into {folder} (once)")
            with whole_folder(folder) as temporary:
                _convert(file, temporary)
            if progress is not None:
                progress(1.0, f"dequantised {file.name}")
    return folder


def _convert(file: Path, out: Path) -> None:
    model, tokenizer = _load(file)
    tied = has_tied_head(model.config.to_dict(), file)
    weights = {name: w for name, w in model.state_dict().items() if not (tied and is_output_head(name))}
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    layout = {name: (tuple(w.shape), written_dtype(w.dtype)) for name, w in weights.items()}
    write_tensors(out, layout, weights.items(), _MAX_FILE_BYTES)


def _load(file: Path) -> tuple[Any, Any]:
    """Model in bf16 and tokenizer, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    with_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # Its bar for GGUF tensors has no switch, and would be one line a tensor where output is piped.
        with redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
            return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise InputError(f"{file}: transformers cannot load this GGUF file ({error}); give safetensors") from error
    finally:
        if with_bars:
            logging.enable_progress_bar()
