"""The driver's side of calibration: which data, which statistics are there, and the actors that compute the others."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import torch

from mergebench_ray.cache import cache_folder
from mergebench_ray.calibration.jobs import OF_ALL_SPECIALISTS, CalibrationJob, run_job
from mergebench_ray.calibration.samples import Sample, samples_digest
from mergebench_ray.calibration.store import StatisticStore
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import CalibrationInput, CalibrationOptions, CalibrationRecord, CalibrationSource
from mergebench_ray.config.calibration import no_calibration_data
from mergebench_ray.errors import InputError
from mergebench_ray.heartbeat import Watchdog, beat
from mergebench_ray.kernels.threads import torch_threads
from mergebench_ray.methods import Calibrated, CalibrationRequest
from mergebench_ray.progress import Progress, silent
from mergebench_ray.ray_actors import Actor, actors_of
from mergebench_ray.ray_errors import input_errors, why_lost
from mergebench_ray.steps import STEP_SECONDS, Step

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_LOSSES = 3
"""So many times a worker may be lost over the same statistic."""


class Calibration:
    """Makes statistics from calibration data, or finds them on disk. May be pickled; progress stays behind.

    Args:
        base: the base.
        specialists: by name.
        sources: where each specialist's samples came from.
        samples: calibration data by name of the specialist; one without any is refused when it is needed.
        options: length, type and folder.
    """

    def __init__(
        self,
        base: Checkpoint,
        specialists: Mapping[str, Checkpoint],
        sources: Mapping[str, CalibrationSource],
        samples: Mapping[str, Sequence[Sample]],
        options: CalibrationOptions,
    ) -> None:
        self._base = base
        self._specialists = {name: specialists[name] for name in sorted(specialists)}
        self._sources = dict(sources)
        self._samples = {name: tuple(texts) for name, texts in samples.items()}
        self._options = options
        self._progress: Progress = silent
        folder = Path(options.folder) if options.folder else cache_folder("calibration")
        self._store = StatisticStore(folder.expanduser().absolute())
        self._records: dict[int, CalibrationRecord] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_progress": silent}

    def report_to(self, progress: Progress) -> None:
        """Tell what is being computed from now on, in this process."""
        self._progress = progress

    def record(self, method: str, samples: int) -> CalibrationRecord:
        """What data a method would be calibrated on.

        Raises:
            InputError: a specialist without data.
        """
        for name in self._specialists:
            if not self._samples.get(name):
                raise no_calibration_data(method, name)
        if samples not in self._records:
            inputs = {}
            for name in self._specialists:
                used = self._samples[name][:samples]
                if len(used) < samples:
                    logger.warning("%s: %d calibration samples of the %d asked for", name, len(used), samples)
                source = self._sources[name].model_dump()
                inputs[name] = CalibrationInput(**source, samples=len(used), digest=samples_digest(used))
            self._records[samples] = CalibrationRecord(
                max_length=self._options.max_length, dtype=self._options.dtype, inputs=inputs
            )
        return self._records[samples]

    def statistics(self, request: CalibrationRequest) -> tuple[Calibrated, ...]:
        """The files of a statistic, in the order of the specialists' names; computed where they are not there.

        Raises:
            InputError: non-finite numbers, statistics of another model in its place, or no node with enough memory.
        """
        self.record(request.kind, request.samples)
        jobs = self._jobs(request)
        missing = [job for job in jobs if self._store.find(job) is None]
        if missing:
            _run(missing, self._store, self._progress)
            for job in missing:
                self._warn_of_cut_samples(job)
        found = [self._store.find(job) for job in jobs]
        return tuple(statistic for statistic in found if statistic is not None)

    def _jobs(self, request: CalibrationRequest) -> list[CalibrationJob]:
        names = list(self._specialists)
        groups = [names] if request.kind in OF_ALL_SPECIALISTS else [[name] for name in names]
        thresholds = dict(zip(names, request.thresholds, strict=True)) if request.thresholds else {}
        return [
            CalibrationJob(
                kind=request.kind,
                base=self._base,
                specialists={name: self._specialists[name] for name in group},
                samples={name: self._samples[name][: request.samples] for name in group},
                options=dict(request.options),
                thresholds=thresholds,
                max_length=self._options.max_length,
                dtype=self._options.dtype,
            )
            for group in groups
        ]

    def _warn_of_cut_samples(self, job: CalibrationJob) -> None:
        manifest = self._store.manifest(job)
        if manifest["samples_cut"]:
            total = sum(manifest["samples"].values())
            logger.warning(
                "%s: %d of %d calibration samples were longer than %d tokens and were cut",
                ", ".join(job.specialists),
                manifest["samples_cut"],
                total,
                job.max_length,
            )


class CalibrationWorker:
    """Computes one statistic and writes it; on one thread, so that its bits are the same everywhere."""

    def __init__(self) -> None:
        self._state = (0.0, "loading the model")
        self._noted, self._longest = time.monotonic(), STEP_SECONDS
        beat(self._step)

    def run(self, job: CalibrationJob, store: StatisticStore, device: str) -> None:
        """Compute and write."""
        began = time.perf_counter()
        self._noted, self._longest = time.monotonic(), STEP_SECONDS + job.longest_step(device)
        with torch_threads(1):
            statistic = run_job(job, torch.device(device), self._note)
        store.write(job, statistic, time.perf_counter() - began)

    def state(self) -> tuple[float, str]:
        """Fraction done and what is happening."""
        return self._state

    def _note(self, fraction: float, text: str) -> None:
        self._state, self._noted = (fraction, text), time.monotonic()

    def _step(self) -> Step:
        """Since the last note of progress; it is begun for one job, and ended with it."""
        return time.monotonic() - self._noted, self._longest


def _run(jobs: Sequence[CalibrationJob], store: StatisticStore, progress: Progress) -> None:
    """Compute statistics, as many at once as the cluster has cores; in this process where there is no Ray."""
    if not ray.is_initialized():
        for job in jobs:
            CalibrationWorker().run(job, store, "cpu")
        return
    needed = max(job.memory for job in jobs)
    on_gpu, at_once = _room_for(needed)
    if not ray.cluster_resources().get("memory"):
        needed = 0  # Ray was told of none anywhere, and would look for it for ever
    waiting = list(jobs)
    lost: Counter[int] = Counter()
    running: dict[ray.ObjectRef[None], tuple[Actor[CalibrationWorker], CalibrationJob]] = {}
    finished = 0
    # Whoever calibrates in a search notices by itself that Ray is gone.
    watch = Watchdog(lambda: [worker.id for worker, _ in list(running.values())], headless=lambda: None)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                worker = _start_worker(needed, on_gpu)
                device = "cuda" if on_gpu else "cpu"
                running[worker.call(CalibrationWorker.run, job, store, device)] = (worker, job)
            done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
            for reference in done:
                worker, job = running.pop(reference)
                try:
                    with input_errors():
                        ray.get(reference)
                    finished += 1
                except ray.exceptions.RayActorError as error:
                    lost[id(job)] += 1
                    if lost[id(job)] == _LOSSES:
                        raise
                    logger.warning("a worker that calibrated was lost (%s): another one does it", why_lost(error))
                    waiting.append(job)
                finally:
                    worker.kill()
            states = []
            for worker, job in running.values():
                with suppress(ray.exceptions.RayActorError):  # its job says so, too
                    states.append((job, ray.get(worker.call(CalibrationWorker.state))))
            share = (finished + sum(fraction for _, (fraction, _) in states)) / len(jobs)
            progress(share, _line(states, share))
    finally:
        watch.close()
        for worker, _job in running.values():
            worker.kill()


def _room_for(needed: int) -> tuple[bool, int]:
    """Whether workers have GPUs, and how many there is room for now: none waits for what bank and engines hold.

    Raises:
        InputError: if no node has as much memory left.
    """
    left = ray._private.state.available_resources_per_node().values()
    if not ray.cluster_resources().get("memory"):
        left = [{**node, "memory": needed} for node in left]  # one a node at a time, where nobody knows
    free = [node.get("memory", 0) for node in left]
    workers = sum(int(memory // needed) for memory in free)
    if workers == 0:
        raise InputError(
            f"calibration needs {needed / 2**30:.1f} GiB on a node, the most that one has left is "
            f"{max(free, default=0) / 2**30:.1f} GiB: add a larger node, use fewer engines, or set calibration.dtype "
            "to bfloat16"
        )
    on_gpus = sum(min(int(node.get("GPU", 0)), int(node.get("memory", 0) // needed)) for node in left)
    cores = int(ray.cluster_resources().get("CPU", 1))
    return on_gpus > 0, on_gpus or max(1, min(workers, cores))


def _start_worker(needed: int, on_gpu: bool) -> Actor[CalibrationWorker]:
    """An actor with the memory that a job needs, on a node that has as much left."""
    make = actors_of(
        CalibrationWorker,
        num_cpus=0,
        num_gpus=int(on_gpu),
        memory=needed,
        max_concurrency=2,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}},
    )
    return make()


def _line(states: Sequence[tuple[CalibrationJob, tuple[float, str]]], share: float) -> str:
    parts = [f"{job.kind} of {', '.join(job.specialists)}" for job, _ in states]
    return f"calibrating, {10 * int(10 * share)} %: {'; '.join(parts)}" if parts else "calibrated"
