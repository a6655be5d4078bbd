"""What a sweep keeps running: the bank, the engines, and the scorer between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import ray

from mergebench_ray.bank import Bank, Calibrator, compiled_ahead
from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import Suite, Sweep
from mergebench_ray.config.fields import Split
from mergebench_ray.evaluation import check_engines_fit, start_evaluator
from mergebench_ray.evaluation.evaluator import Evaluator, EvaluatorStats
from mergebench_ray.heartbeat import Watchdog, end_without_ray
from mergebench_ray.judges.judges import Judges
from mergebench_ray.placement import Placement, engines_per_candidate
from mergebench_ray.placement.starting import ANYWHERE, Reservation
from mergebench_ray.progress import Progress
from mergebench_ray.ray_actors import Actor
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.search.leaving import LeavingNodes
from mergebench_ray.search.losses import Losses
from mergebench_ray.search.scorer import CandidateScorer
from mergebench_ray.search.supervisor import Supervisor

_REMEDY = (
    "give engines less (engine.kv_cache_gib, engine.max_num_seqs) or more memory, and go on with the same command and "
    "--resume"
)


@dataclass(frozen=True)
class Session:
    """What is running.

    Attributes:
        bank: holds base and task vectors.
        scorer: merges, loads and scores.
        engines: lends them, and brings back those that are lost.
        base: the base's checkpoint.
        specialists: the specialists' checkpoints by name.
        domains: the scored domains, what must not be forgotten included where the search is after it.
        started: `time.perf_counter()` when bank and engines were up.
        engine_start_seconds: how long the slowest engine took to start.
        engine_dtype: what the engines compute in.
        engine_device: what they compute on.
        engine_proof: one line about what they proved at their start.
    """

    bank: Bank
    scorer: CandidateScorer
    engines: Supervisor
    base: Checkpoint
    specialists: dict[str, Checkpoint]
    domains: list[str]
    started: float
    engine_start_seconds: float
    engine_dtype: str
    engine_device: str
    engine_proof: str

    def items_digest(self, split: Split, domains: list[str] | None = None) -> str:
        """Digest of the items that are scored on a split."""
        return self.engines.ask(Evaluator.items_digest, split, domains)

    def engine_share(self) -> float:
        """Share of the wall time since the engines were up in which they computed, 0 to 1."""
        wall, busy = time.perf_counter() - self.started, 0.0
        for actor in self.engines.up:
            with suppress(ray.exceptions.RayActorError):  # those that cannot be asked do not count
                busy += ray.get(actor.call(Evaluator.stats)).busy_seconds
        return busy / (wall * len(self.engines.actors))


@contextmanager
def open_session(
    sweep: Sweep,
    suite: Suite,
    base: Checkpoint,
    specialists: dict[str, Checkpoint],
    warm_up: Sequence[tuple[str, dict[str, Any]]],
    run: RunFolder,
    calibrator: Calibrator | None,
    judges: Judges,
    report: Progress,
    placement: Placement | None = None,
    places: Reservation = ANYWHERE,
    *,
    note: Callable[[str], None],
) -> Iterator[Session]:
    """Load the bank while the engines start; everything is gone when the block ends.

    Args:
        sweep: says how many shards and engines.
        suite: what is scored.
        base: the base, which the engines start with.
        specialists: by name.
        warm_up: methods and hyper-parameters to merge once while vLLM starts, so that each method's pass is compiled
            and its statistics are there before the engines wait for them.
        run: where the engines' logs go.
        calibrator: for methods that see data.
        judges: the judges at hand, shared by all engines.
        report: called with (fraction done, what is happening).
        placement: what sits where; None lets Ray choose.
        places: what is set aside for it.
        note: called with a line about what was lost and what that took.
    """
    if placement is None:
        check_engines_fit(sweep.engine)
    # An engine measures how much of its GPU is free, and must not do so while others fill it.
    one_by_one = placement is not None and placement.shares_devices
    scoring = sweep.scoring(suite)
    report(0.0, f"starting {sweep.engine.count} vLLM engine(s), about half a minute, and loading the bank")
    losses = Losses(run.losses_file, note)
    bank: Bank | None = None
    shards: list[str] = []
    connecting = threading.Lock()
    leaving: LeavingNodes | None = None

    def start(index: int) -> Actor[Evaluator]:
        where = places.of("engine", index)
        options = sweep.engine if placement is None else placement.engine_options(sweep.engine, index)
        return start_evaluator(suite, base, options, scoring, run.engine_log(index), judges, where)

    def prepare(actor: Actor[Evaluator]) -> EvaluatorStats:
        assert bank is not None
        stats = ray.get(actor.call(Evaluator.start))
        with connecting:
            connected = actor.call(Evaluator.connect, bank.localise)
        ray.get(connected)
        # Builds and tokenises the items of all splits, once.
        ray.get([actor.call(Evaluator.items_digest, split) for split in sweep.evaluation.splits])
        return stats

    engines = Supervisor(
        start,
        prepare,
        count=sweep.engine.count,
        per_candidate=engines_per_candidate(sweep),
        say=losses.say,
        log="see engine-{index}.log in the run's folder",
        remedy=_REMEDY,
    )

    @contextmanager
    def swapping() -> Iterator[None]:
        assert bank is not None
        with scorer.between_merges, connecting:
            yield
            shards[:] = bank.actor_shards.ids
            for actor in engines.actors:  # those that start will be told
                actor.call(Evaluator.connect, bank.localise)

    watch = Watchdog(
        lambda: [*(actor.id for actor in engines.actors), *shards, *judges.actors],
        headless=lambda: end_without_ray(f"go on with the same command and --resume, in {run.path}"),
        leaving=lambda nodes: None if leaving is None else leaving.see(nodes),
    )
    try:
        if not one_by_one:
            engines.begin()
        on_gpus = bool(ray.cluster_resources().get("GPU")) if placement is None else placement.bank_on_gpu
        # On GPUs the shards compile by themselves, each for its own.
        with nullcontext() if on_gpus else compiled_ahead(warm_up, sorted(specialists)):
            bank = Bank.load(
                base,
                specialists,
                shards=sweep.bank.shards,
                use_gpu=None if placement is None else placement.bank_on_gpu,
                streams=placement is not None and placement.bank_streams,
                where=places.all_of("shard"),
                calibrator=calibrator,
                begun=shards.extend,
                progress=report,
                say=losses.say,
            )
            report(1.0, "preparing the methods while vLLM starts")
        if one_by_one:
            engines.begin(one_by_one=True)
        for method, parameters in warm_up:
            bank.merge(bank.recipe(method, parameters))
        engines.wait()
        stats = engines.stats.values()
        scorer = CandidateScorer(bank, engines, losses)
        leaving = LeavingNodes(engines, bank.actor_shards, places, swapping, losses.say)
        yield Session(
            bank=bank,
            scorer=scorer,
            engines=engines,
            base=base,
            specialists=specialists,
            domains=list(scoring.domains or suite.domains),
            started=time.perf_counter(),
            engine_start_seconds=max(one.start_seconds for one in stats),
            engine_dtype="+".join(sorted({one.dtype for one in stats})),
            engine_device=" + ".join(sorted({one.device for one in stats})),
            engine_proof=max(stats, key=lambda one: one.start_seconds).proof,
        )
    finally:
        watch.close()
        if leaving is not None:
            leaving.close()
        engines.close()
        if bank is not None:
            bank.close()
