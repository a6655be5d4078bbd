"""The evaluator: a vLLM engine and the prepared tasks of a suite, in one Ray actor."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import ray

from mergebench_ray.checkpoints import Checkpoint
from mergebench_ray.config import EngineOptions, Suite
from mergebench_ray.config.evaluation import EvaluationOptions, ModelEvaluationOptions
from mergebench_ray.config.fields import Split
from mergebench_ray.engines import LoadReport, VLLMEngine
from mergebench_ray.engines.engine_proof import prove
from mergebench_ray.engines.environment import ACTOR_ENVIRONMENT
from mergebench_ray.engines.of_checkpoint import engine_of
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.graded import GradedItems, GradedShare, Spent
from mergebench_ray.evaluation.order import Order, Share
from mergebench_ray.evaluation.prepared import PreparedSplit
from mergebench_ray.evaluation.share_scoring import ShareScoring
from mergebench_ray.heartbeat import beat
from mergebench_ray.judges.judges import NO_JUDGES, Judges
from mergebench_ray.ray_actors import Actor, actors_of, call_is_cancelled
from mergebench_ray.scores import Scores
from mergebench_ray.tasks.chat import ChatTemplate
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, items_digest
from mergebench_ray.weights.checkpoint_weights import checkpoint_weights
from mergebench_ray.weights.device_memory import Opener, this_node
from mergebench_ray.weights.manifest import WeightManifest
from mergebench_ray.weights.together import Together

_ENGINE_CPUS = 0.9
Localise: TypeAlias = Callable[[WeightManifest, Any, Opener | None, Together | None], WeightManifest]


@dataclass(frozen=True)
class EvaluatorStats:
    """What an evaluator has done since it was made.

    Attributes:
        start_seconds: time that the engine took to start.
        prepare_seconds: time spent building and tokenising tasks.
        busy_seconds: time in which the engine computed answers.
        tokens: tokens read and written by the engine.
        dtype: what the engine computes in.
        device: what it computes on.
        proof: one line about what the engine proved at its start; empty where it was not asked to.
    """

    start_seconds: float
    prepare_seconds: float
    busy_seconds: float
    tokens: int
    dtype: str
    device: str
    proof: str


class Evaluator:
    """Scores whatever weights its engine holds. A plain class; `start_evaluator` puts it into a Ray actor.

    Making one is quick: the engine starts with `start` or when it is first needed, and the tasks of a split are built
    and tokenised when it is first scored. Both are kept.

    Args:
        suite: what is scored.
        options: on which items.
        make_engine: starts the engine.
        judges: the judges at hand.
        base: the model that the engine starts with, by which it proves that loads reach all of its weights; None to do
            without.
    """

    def __init__(
        self,
        suite: Suite,
        options: EvaluationOptions,
        make_engine: Callable[[], VLLMEngine],
        judges: Judges = NO_JUDGES,
        base: Checkpoint | None = None,
    ) -> None:
        self._suite = suite
        self._options = options
        self._make_engine = make_engine
        self._judges = judges
        self._base = base
        self._proof = ""
        self._refusal: InputError | None = None
        self._loaded: dict[Split, list[ScoredTask]] = {}
        self._prepared: dict[Split, PreparedSplit] = {}
        self._localise: Localise | None = None
        self._scoring: ShareScoring | None = None
        self._start_seconds = 0.0
        self._prepare_seconds = 0.0
        beat(lambda: self._engine.present_step if "_engine" in vars(self) else (0.0, 0.0))

    def is_there(self) -> str:
        """Ray's id of its node: whoever called knows now that the actor has found its place."""
        return this_node()

    def start(self) -> EvaluatorStats:
        """Start the engine if it is not running yet.

        Raises:
            InputError: if weights that are loaded in place do not answer as they should.
        """
        _ = self._engine
        return self.stats()

    def connect(self, localise: Localise) -> None:
        """Say how weights that lie elsewhere are brought within the engine's reach with each load (`Bank.localise`)."""
        self._localise = localise

    def load(self, manifest: WeightManifest, places: Any = None, together: Together | None = None) -> LoadReport:
        """Replace the engine's weights by a candidate's.

        Args:
            manifest: the candidate.
            places: where the bank's shards were when they merged it.
            together: engines of this node that load it, too; None where there is no other.
        """
        if self._localise is not None:
            manifest = self._localise(manifest, places, self._engine.opener, together)
        return self._engine.load(manifest)

    def load_checkpoint(self, checkpoint: Checkpoint, base: Checkpoint) -> LoadReport:
        """Replace the engine's weights by a checkpoint's own, embeddings included, unless it holds them.

        Args:
            checkpoint: the base itself, or a specialist compatible with it.
            base: the engine's base.
        """
        if checkpoint.digest() == base.digest():
            return self.restore_base()
        if self._engine.holds(checkpoint.digest()):
            return LoadReport(checkpoint.digest(), 0.0, 0, 0)
        return self._engine.load(checkpoint_weights(checkpoint, base))

    def restore_base(self) -> LoadReport:
        """Put the base's weights back."""
        return self._engine.restore_base()

    def score(self, split: Split, domains: Sequence[str] | None = None) -> Scores:
        """Score the present weights.

        Args:
            split: "validation" for a search, "test" at its end.
            domains: some of the chosen domains; None for all of them.
        """
        return self._split(split).score(self._engine, domains)

    def grade_share(
        self,
        split: Split,
        share: Share,
        domains: Sequence[str] | None = None,
        without: frozenset[int] = frozenset(),
    ) -> GradedShare:
        """Ask the present weights a share of the items that `score` would ask; `combine` makes scores of all shares.

        Places of items in `without` are left out.
        """
        return self._split(split).grade_share(self._engine, share, domains, without)

    def combine(self, split: Split, shares: Sequence[GradedShare], *, partial: bool = False) -> Scores:
        """Scores from the shares of several evaluators; with `partial`, of those items that are there."""
        return self._split(split).combine(shares, partial=partial)

    def looks(self, split: Split, order: Order, share: Share) -> Generator[GradedItems, None, None]:
        """Ask the present weights items in a given order; what each look adds, while others are asked.

        As an actor's, it runs in the main thread, as every call does, and whoever began it stops it by `ray.cancel`;
        elsewhere by closing it. `spent` says afterwards what it took.

        Raises:
            InputError: if the order has looks and a task's metric exists only over all of its items.
        """
        self._scoring = self._split(split).score_in_order(self._engine, order, share)
        yield from self._scoring.looks(call_is_cancelled)

    def spent(self) -> GradedShare:
        """What `looks` took, stopped or not, since this was last asked; without the items that it has handed out."""
        scoring, self._scoring = self._scoring, None
        return GradedShare({}, self._engine.weight_version, Spent()) if scoring is None else scoring.spent()

    def items_digest(self, split: Split, domains: Sequence[str] | None = None) -> str:
        """Digest of the items that `score` would score: part of the key under which a result may be reused."""
        return items_digest(task for task in self._tasks(split) if domains is None or task.domain in domains)

    def stats(self) -> EvaluatorStats:
        """Times and tokens so far."""
        engine = self._engine
        return EvaluatorStats(
            start_seconds=self._start_seconds,
            prepare_seconds=self._prepare_seconds,
            busy_seconds=engine.busy_seconds,
            tokens=engine.tokens,
            dtype=engine.dtype,
            device=engine.device,
            proof=self._proof,
        )

    def close(self) -> None:
        """Stop the engine if it was started."""
        if "_engine" in vars(self):
            self._engine.close()

    @functools.cached_property
    def _engine(self) -> VLLMEngine:
        if self._refusal is not None:
            raise self._refusal
        started = time.perf_counter()
        engine = self._make_engine()
        self._start_seconds = time.perf_counter() - started
        if self._base is not None:
            try:
                self._proof = str(prove(engine, self._base, self._suite.max_model_len))
            except InputError as error:
                # Whoever asks next is told at once, without another start.
                self._refusal = error
                engine.close()
                raise
        return engine

    def _tasks(self, split: Split) -> list[ScoredTask]:
        if split not in self._loaded:
            started = time.perf_counter()
            self._loaded[split] = load_tasks(
                self._suite, split, self._options, judges=self._judges.digests, template=self._template()
            )
            self._prepare_seconds += time.perf_counter() - started
        return self._loaded[split]

    def _template(self) -> ChatTemplate | None:
        if not self._options.apply_chat_template:
            return None
        if self._base is None:
            return ChatTemplate(self._engine.tokenizer, "the model")
        return ChatTemplate.of(self._base.plain_folder(), str(self._base))

    def _split(self, split: Split) -> PreparedSplit:
        if split not in self._prepared:
            tasks, tokenizer = self._tasks(split), self._engine.tokenizer
            started = time.perf_counter()
            greedy = isinstance(self._options, ModelEvaluationOptions) and self._options.all_greedy
            self._prepared[split] = PreparedSplit(
                split, tasks, tokenizer, self._suite.max_model_len, self._judges, all_greedy=greedy
            )
            self._prepare_seconds += time.perf_counter() - started
        return self._prepared[split]


def start_evaluator(
    suite: Suite,
    base: Checkpoint,
    engine_options: EngineOptions,
    options: EvaluationOptions,
    log_file: Path | None = None,
    judges: Judges = NO_JUDGES,
    where: Mapping[str, Any] = MappingProxyType({}),
) -> Actor[Evaluator]:
    """Make an `Evaluator` in a Ray actor of its own; its engine starts with `start`.

    On a CPU the actor is counted as nearly a core, which spreads engines over nodes and leaves room for the search's
    trials, but vLLM computes on all that it may use: scoring is what a sweep does.
    An `InputError` inside the actor arrives as a `ray.exceptions.RayTaskError`, with the error itself as its `cause`.

    Args:
        suite: what is scored.
        base: the model that the engine starts with.
        engine_options: the sweep's engine options.
        options: on which items.
        log_file: where vLLM's log goes; None drops it.
        judges: the judges at hand, as `running_judges` starts them.
        where: Ray's options for the actor, as a reservation says; else Ray may put it anywhere.

    Returns:
        the actor.

    Raises:
        InputError: if the base is an adapter on another model, which no engine can start from.
    """
    if base.ref.adapter is not None:
        raise InputError(f"base {base}: an adapter cannot be the base; merge it into a folder first")
    num_gpus = engine_options.gpus if ray.cluster_resources().get("GPU") else 0
    make_engine = functools.partial(engine_of, base, engine_options, suite.max_model_len, log_file)
    counted = {"num_cpus": _ENGINE_CPUS, "num_gpus": num_gpus, **where}
    make = actors_of(Evaluator, runtime_env={"env_vars": ACTOR_ENVIRONMENT}, **counted)
    return make(suite, options, make_engine, judges, base)


def check_engines_fit(engine_options: EngineOptions) -> None:
    """Refuse engines that Ray would wait for without end.

    Raises:
        InputError: if the cluster has too few GPUs, or without any too few cores, for all engines.
    """
    resources = ray.cluster_resources()
    each, kind = (engine_options.gpus, "GPU") if resources.get("GPU") else (1.0, "CPU")
    count, there = engine_options.count, resources.get(kind, 0)
    if count * each > there:
        raise InputError(
            f"engine.count = {count}: they take {count * each:g} {kind}s, the cluster has {there:g}; "
            "use fewer engines, or a larger cluster"
        )


def score_together(
    evaluators: Sequence[Actor[Evaluator]], split: Split, domains: Sequence[str] | None = None
) -> Scores:
    """Score the weights that all of several evaluators hold, each on its share of the items.

    Args:
        evaluators: actors that hold the same weights.
        split: "validation" or "test".
        domains: some of the chosen domains; None for all of them.
    """
    if len(evaluators) == 1:
        return ray.get(evaluators[0].call(Evaluator.score, split, domains))
    return grade_together(evaluators, split, domains)[0]


def grade_together(
    evaluators: Sequence[Actor[Evaluator]],
    split: Split,
    domains: Sequence[str] | None = None,
    known: GradedItems = MappingProxyType({}),
) -> tuple[Scores, GradedItems]:
    """As `score_together`, with what came of each item.

    Args:
        evaluators: actors that hold the same weights.
        split: which items.
        domains: some of the chosen domains; None for all of them.
        known: what came of some of the items with these weights before: they are not asked.
    """
    without = frozenset(known)
    asked = [
        evaluator.call(Evaluator.grade_share, split, Share(index, len(evaluators)), domains, without)
        for index, evaluator in enumerate(evaluators)
    ]
    shares = ray.get(asked)
    shares.append(GradedShare(dict(known), shares[0].version, Spent()))
    scores = ray.get(evaluators[0].call(Evaluator.combine, split, shares))
    return scores, {place: item for share in shares for place, item in share.items.items()}
