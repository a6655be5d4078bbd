"""GGUF files, dequantised once by transformers into bf16 safetensors in the cache."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from mergebench_ray.checkpoints.accompanying_files import copy_licences
from mergebench_ray.checkpoints.conversion import converted
from mergebench_ray.checkpoints.digest import file_digest
from mergebench_ray.checkpoints.gguf_header import read_gguf_header
from mergebench_ray.checkpoints.tensor_files import write_tensors, written_dtype
from mergebench_ray.errors import InputError, one_line
from mergebench_ray.families import family_of
from mergebench_ray.families.configuration import has_tied_head
from mergebench_ray.files import open_regular
from mergebench_ray.progress import Progress, silent

_MAGIC = b"GGUF"
_MAX_FILE_BYTES = 5 << 30
_FORMAT = 2


def dequantise(file: Path, progress: Progress | None = None) -> Path:
    """The folder with a GGUF file's weights in bf16, configuration, tokenizer, chat template and generation settings.

    Made at the first call and keyed by the file's digest; needs memory for the whole model that once.

    Raises:
        InputError: if the file is not GGUF, or transformers cannot load it.
    """
    try:
        with open_regular(file) as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise InputError(f"{file}: not a GGUF file; check the path or fetch it again")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    report = progress or silent

    def make(temporary: Path, folder: Path) -> None:
        header = read_gguf_header(file)
        report(0.0, f"dequantising {file.name} into {folder} (once)")
        _convert(file, header.elements, temporary)
        copy_licences(file.parent, temporary)
        report(1.0, f"dequantised {file.name}")

    return converted("gguf", f"{file_digest(file)}-{_FORMAT}", make)


def _convert(file: Path, elements: int, out: Path) -> None:
    model, tokenizer = _load(file, elements)
    tied, family = has_tied_head(model.config.to_dict(), file), family_of(model.config.model_type)
    weights = {name: w for name, w in model.state_dict().items() if not (tied and family.is_output_head(name))}
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    layout = {name: (tuple(w.shape), written_dtype(w.dtype)) for name, w in weights.items()}
    write_tensors(out, layout, weights.items(), _MAX_FILE_BYTES)


def _load(file: Path, elements: int) -> tuple[Any, Any]:
    """Model in bf16 and tokenizer, by transformers.

    Raises:
        InputError: whatever transformers fails with, as it raises errors of every kind at a damaged file.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    with_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # Its bar for GGUF tensors has no switch, and would be one line a tensor where output is piped. A folder that
        # holds nothing else, since transformers also reads what lies beside the file.
        with redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as alone:
            link = Path(alone) / "model.gguf"
            link.symlink_to(file.absolute())
            source = {"gguf_file": str(link), "local_files_only": True}
            config = AutoConfig.from_pretrained(alone, **source, trust_remote_code=False)
            _refuse_other_size(config, elements)
            model = AutoModelForCausalLM.from_pretrained(
                alone,
                **source,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
            )
            return model, AutoTokenizer.from_pretrained(alone, **source, trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"{file}: transformers cannot load this GGUF file ({one_line(error)}); give safetensors"
        ) from error
    finally:
        if with_bars:
            logging.enable_progress_bar()


def _refuse_other_size(config: Any, elements: int) -> None:
    """Refuse settings that describe a much larger model than the file holds, before memory for it is taken."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * elements:
        raise ValueError(f"its settings describe {described} parameters, its tensors hold {elements}")
