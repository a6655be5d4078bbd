"""vLLM, started once, whose weights are replaced in place."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from mergebench_ray.config import EngineOptions
from mergebench_ray.engines.environment import engine_dtype, prepare_environment
from mergebench_ray.engines.generation_defaults import generation_defaults
from mergebench_ray.engines.model_folder import ModelFolder
from mergebench_ray.engines.requests import (
    Generation,
    GenerationRequest,
    Likelihood,
    LoadReport,
    LoglikelihoodRequest,
    Request,
)
from mergebench_ray.engines.starting import longest_load, longest_step, start_vllm
from mergebench_ray.engines.transports import WeightTransport, transport_class
from mergebench_ray.families import family_of
from mergebench_ray.machine import computing_device, usable_cores
from mergebench_ray.steps import STEP_SECONDS, Step, Steps
from mergebench_ray.weights.device_memory import DeviceMemory, Opener
from mergebench_ray.weights.held_weights import HeldWeights
from mergebench_ray.weights.manifest import WeightManifest

if TYPE_CHECKING:
    from mergebench_ray.engines.batch import Answer, Batch, Prompt

BASE_VERSION = "base"
_RESET_ATTEMPTS = 5
_RESET_PAUSE_S = 0.05


def _ignore(_index: int, _answer: Answer) -> None:
    """Nobody waits for single answers."""


class VLLMEngine:
    """Answers requests with the weights that were loaded last.

    Lives in one process (an actor of the evaluation) and is used by one thread. It starts with the weights of its
    model folder. It also offers the calls by which a transport replaces weights (`WeightReceiver`).

    Args:
        model_folder: safetensors, config and tokenizer of the base.
        options: the sweep's engine options.
        max_model_len: longest prompt plus answer, in tokens.
        seed: of vLLM's own random numbers.
        log_file: where vLLM's log goes; None drops it.
        settings: what replaces settings of the folder's config.json.

    Raises:
        InputError: if vLLM cannot run the model, the model is not made for that length, or its
            `generation_config.json` cannot be followed.

    Attributes:
        tokenizer: the base's tokenizer.
        dtype: what it computes in.
        device: what it computes on.
        busy_seconds: time spent inside vLLM on requests so far.
        tokens: prompt and answer tokens of those requests.
    """

    def __init__(
        self,
        model_folder: Path,
        options: EngineOptions,
        max_model_len: int,
        seed: int = 0,
        log_file: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._defaults = generation_defaults(model_folder)
        prepare_environment(max(1, usable_cores() // options.count), log_file)
        self.dtype, self.device = engine_dtype(options.dtype), computing_device()
        self._folder = ModelFolder(model_folder)
        on_cpu = not torch.cuda.is_available()
        transport = transport_class(options.transport)
        self._llm: Any = start_vllm(
            model_folder, options, max_model_len, seed, self.dtype, transport.backend, on_cpu=on_cpu, settings=settings
        )
        self.tokenizer: Any = self._llm.get_tokenizer()
        self.busy_seconds = 0.0
        self.tokens = 0
        self._steps = Steps()
        tokens = self._llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
        self._longest_step = longest_step(model_folder, tokens) if on_cpu else STEP_SECONDS
        self._longest_load = longest_load(model_folder)
        self._max_model_len = max_model_len
        family = family_of(self._llm.llm_engine.vllm_config.model_config.hf_config.model_type)
        self._held = HeldWeights(family)
        self._names = itertools.count()
        self._llm.update_weight_version(BASE_VERSION)
        self._transport: WeightTransport = transport(self)
        self._transport.connect()

    @property
    def weight_version(self) -> str:
        """Version of the weights that answer, as vLLM itself keeps it: a recipe digest, or "base"."""
        return str(self._llm.get_weight_version())

    @property
    def present_step(self) -> Step:
        """What it computes or loads, as `beat` wants it; from any thread."""
        return self._steps.present()

    def holds(self, version: str) -> bool:
        """Whether the weights of this version are there, whole."""
        return not self._held.undefined and self.weight_version == version

    def norm_classes(self) -> list[str]:
        """Names of the classes that compute the model's norms in vLLM."""
        return list(self._llm.collective_rpc("norm_classes")[0])

    @property
    def opener(self) -> Opener | None:
        """Opens memory of its device, in which a manifest's tensors may lie; None where it reads host memory alone."""
        return self._open if self._transport.reads_devices else None

    def _open(self, memory: DeviceMemory) -> str:
        if memory.problem:
            return memory.problem
        # Each worker has a device of its own, and all of them read the same pieces.
        return next(filter(None, self._llm.collective_rpc("open_memory", args=(memory.device, memory.path))), "")

    def load(self, manifest: WeightManifest) -> LoadReport:
        """Replace the weights by a candidate's; only tensors whose fingerprint differs from the held one move.

        Raises:
            OSError: if the memory of a tensor is gone. This and any other error during the replacement, such as what
                a stream of tensors ends with, leave the weights undefined: the engine refuses requests until a load,
                which then moves all tensors, succeeds.
            RuntimeError: if the prefix cache could not be reset.
        """
        started = time.perf_counter()
        names = self.changed(manifest)
        self._transport.send(manifest, names)
        self.accept(manifest)
        moved = set(names)
        elements = sum(tensor.count for tensor in manifest.tensors if tensor.name in moved)
        num_bytes = elements * getattr(torch, manifest.dtype).itemsize
        return LoadReport(manifest.version, time.perf_counter() - started, len(names), num_bytes)

    def restore_base(self) -> LoadReport:
        """Put the base back: vLLM reads the model folder again.

        Raises:
            InputError: if a file in it has changed since the start.
        """
        started = time.perf_counter()
        if self._held.differ_from_base():
            self._folder.require_unchanged()
            self._held.begin()
            with self._loading():
                self._llm.collective_rpc("read_base_again")
            self._folder.require_unchanged()
        self._make_current(BASE_VERSION)
        self._held.complete(None)
        return LoadReport(BASE_VERSION, time.perf_counter() - started, 0, 0)

    # `changed` and `accept` stand around the calls of a transport (`WeightReceiver`).

    def changed(self, manifest: WeightManifest) -> list[str]:
        """Names of the tensors that must be sent to make the engine hold this candidate."""
        if self._held.not_in(manifest):
            self.restore_base()
        return self._held.changed(manifest)

    def accept(self, manifest: WeightManifest) -> None:
        """Note that all tensors that `changed` named have been received."""
        self._held.complete(manifest)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Make the receiving side ready; once."""
        with self._loading():  # waits for the sender
            self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        """Make the weights ready to be replaced."""
        self._held.begin()
        with self._loading():
            self._llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Replace some weights."""
        with self._loading():
            self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make the replaced weights the ones that answer, under a new version."""
        with self._loading():
            self._llm.finish_weight_update()
        self._make_current(weight_version)

    def _make_current(self, weight_version: str | None) -> None:
        """Drop keys and values that the former weights computed, then set the version.

        None of vLLM's calls for new weights clears its prefix cache: without this, prompts that begin like an earlier
        one are answered from the former candidate.
        """
        self.forget_prefixes()
        if weight_version is not None:
            self._llm.update_weight_version(weight_version)

    # Requests

    def forget_prefixes(self) -> None:
        """Empty the prefix cache.

        Answers in bf16 depend a little on what is read from it, so equal weights answer equally only from equal states.
        """
        self._settle()
        for _ in range(_RESET_ATTEMPTS):
            if self._llm.reset_prefix_cache():
                return
            time.sleep(_RESET_PAUSE_S)
        raise RuntimeError("vLLM could not reset its prefix cache")

    def batch(self, requests: Sequence[Request], urgent: Collection[int] = (), *, in_order: bool = False) -> Batch:
        """Requests made ready for `answer` or `stream`, any number of times.

        Args:
            requests: of any kind.
            urgent: indices of generations to ask for before all else.
            in_order: ask in the order of the requests, not the longest first.

        Raises:
            InputError: if a request leaves no room for a prompt, or what is to be scored is empty.
        """
        from mergebench_ray.engines.batch import Batch

        v2_runner = self._llm.llm_engine.vllm_config.use_v2_model_runner
        return Batch(requests, self._max_model_len, self.tokenizer, self._defaults, urgent, v2_runner, in_order)

    def answer(self, batch: Batch, when_answered: Callable[[int, Answer], None] = _ignore) -> list[Answer]:
        """Answer all requests of a batch together, in the order of the requests.

        Args:
            batch: as `batch` made it.
            when_answered: called with a request's index and its answer while others are still computed.

        Raises:
            RuntimeError: if the weights are undefined.
        """
        answers: list[Any] = [None] * batch.size
        for answered in self.stream(batch.prompts):
            for index, answer in answered:
                answers[index] = answer
                when_answered(index, answer)
        return answers

    def stream(
        self, prompts: Iterable[Prompt], in_flight: int | None = None, alone: int = 0
    ) -> Generator[list[tuple[int, Answer]], None, None]:
        """Answer prompts in the order given: what each of vLLM's steps completed, often nothing.

        A prompt begins as soon as there is room for it, whatever whoever reads the answers does. So those until a stop
        are those of the whole, bit for bit. To stop, close the iterator: what has begun is aborted and counted in
        `tokens`, and nothing of it is left in the engine.

        Args:
            prompts: of a batch, all or some.
            in_flight: how many sequences are computed at a time; None leaves that to vLLM, which knows of all prompts
                from the start.
            alone: how many of the first prompts are complete before another begins; all of them begin at once.

        Yields:
            indices of requests with their answers.

        Raises:
            RuntimeError: if the weights are undefined.
        """
        if self._held.undefined:
            raise RuntimeError("the engine's weights are undefined since a load failed; load a candidate first")
        to_come = deque(prompts)
        begun: dict[str, Prompt] = {}
        rest = len(to_come) - alone
        try:
            while to_come or begun:
                with self._busy():
                    room = math.inf
                    if in_flight is not None and len(to_come) <= rest:
                        room = in_flight - sum(one.sequences for one in begun.values())
                    while to_come and room > 0 and (len(to_come) != rest or not begun):
                        room -= to_come[0].sequences
                        self._begin(begun, to_come.popleft())
                    answered = self._step(begun)
                yield answered
        finally:
            if begun:
                self._abort(begun)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answer all requests in one batch, in their order."""
        return cast(list[Generation], self.answer(self.batch(requests)))

    def loglikelihood(self, requests: Sequence[LoglikelihoodRequest]) -> list[Likelihood]:
        """Likelihood of each continuation, all in one batch, in their order."""
        return cast(list[Likelihood], self.answer(self.batch(requests)))

    def _begin(self, begun: dict[str, Prompt], prompt: Prompt) -> None:
        from vllm.inputs import tokens_input

        name = str(next(self._names))
        begun[name] = prompt
        self._llm.llm_engine.add_request(name, tokens_input(prompt.token_ids), prompt.sampling)

    def _step(self, begun: dict[str, Prompt]) -> list[tuple[int, Answer]]:
        """Let vLLM compute a token of each sequence; the answers that are complete with it."""
        answered: list[tuple[int, Answer]] = []
        for output in self._llm.llm_engine.step():
            if not output.finished:
                continue
            prompt = begun.pop(output.request_id)
            self.tokens += len(output.prompt_token_ids) + sum(len(one.token_ids) for one in output.outputs)
            if again := prompt.again(output):
                self._begin(begun, again)
            else:
                answered += prompt.answers(output)
        return answered

    def _abort(self, begun: Mapping[str, Prompt]) -> None:
        engine = self._llm.llm_engine
        with self._busy():
            for state in engine.output_processor.request_states.values():
                if not state.is_prefilling:
                    self.tokens += state.prompt_len + state.detokenizer.num_output_tokens()
            engine.abort_request(list(begun))
            self._settle()

    def _settle(self) -> None:
        """Let end what vLLM has begun ahead, as it does on GPUs, and clear the places of what was aborted."""
        engine = self._llm.llm_engine
        for _ in range(engine.vllm_config.max_concurrent_batches + 1):
            engine.step()

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with self._steps.step(self._longest_step):
                yield
        finally:
            self.busy_seconds += time.perf_counter() - started

    def _loading(self) -> contextlib.AbstractContextManager[None]:
        return self._steps.step(self._longest_load)

    def close(self) -> None:
        """Stop vLLM and free its memory."""
        self._transport.close()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
