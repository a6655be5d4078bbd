"""A search whose models are made up: all of it is real but bank, engines and what their answers are."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import optuna
import torch
from lm_eval.api.metrics import mean
from optuna.trial import TrialState

from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.config.race import RaceOptions
from mergebench_ray.evaluation.graded import GradedItem, GradedItems, Spent
from mergebench_ray.evaluation.order import Order
from mergebench_ray.evaluation.ordered_scoring import Look
from mergebench_ray.kernels.histogram import MAGNITUDES
from mergebench_ray.runs.run_folder import RunFolder
from mergebench_ray.runs.spending import Sittings
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, proposed
from mergebench_ray.scores import DomainScore, ItemRow, Scores
from mergebench_ray.search import warm_start
from mergebench_ray.search.budget import RunBudget, UnderWay, Work
from mergebench_ray.search.earlier_items import EarlierItems, run_folders
from mergebench_ray.search.race.decision import Decision
from mergebench_ray.search.race_choice import chosen_race, order_of, race_of, raced_besides
from mergebench_ray.search.race_order import RaceOrder
from mergebench_ray.search.racing import Racing
from mergebench_ray.search.records import Records
from mergebench_ray.search.running_search import RunningSearch
from mergebench_ray.search.samplers import search_sampler
from mergebench_ray.search.scorer import GivenUp, Measurement, Step
from mergebench_ray.search.space import Space
from mergebench_ray.search.standing import Cost, Standing
from mergebench_ray.search.starts import free_proposals
from mergebench_ray.search.study import RunStudy
from mergebench_ray.tasks.scored_task import ScoredTask

DOMAINS = ("coding", "math", "safety")
PER_DOMAIN = 40
TOKENS = 10
"""Of an answer, which takes a second."""
BEST = {"coding": 0.3, "math": 0.5, "safety": 0.7}
"""The coefficients of the best merge there is."""
COEFFICIENT = {"low": 0.0, "high": 1.0, "per": "specialist"}


class MadeUpBank:
    """Makes recipes, of task vectors that are all alike."""

    specialists = sorted(DOMAINS)

    @property
    def statistics(self) -> Any:
        histograms = torch.zeros(len(DOMAINS), MAGNITUDES, dtype=torch.int64)
        histograms[:, 1] = 1
        return SimpleNamespace(magnitude_histograms=lambda: histograms)

    def recipe(self, method: str, parameters: dict[str, Any]) -> Recipe:
        names = dict.fromkeys(DOMAINS, "s")
        return Recipe.model_validate(
            {
                **{"method": method, "parameters": parameters, "base": "b", "base_digest": "c"},
                **{"specialists": names, "specialist_digests": dict.fromkeys(DOMAINS, "d")},
            }
        )


class MadeUpScorer:
    """What `CandidateScorer` does, with answers that a recipe's coefficients decide; counts what it is asked.

    Args:
        fails: candidates that are given up, and in a race after how many looks.
    """

    def __init__(self, fails: Mapping[int, int] = MappingProxyType({})) -> None:
        self.asked, self._fails, self._begun = 0, fails, Counter[int]()
        self.gone: list[tuple[int, int]] = []
        self._bank = MadeUpBank()
        self._steps: dict[int, Step] = {}
        self._going: dict[int, tuple[Recipe, int, int]] = {}
        self._standings: dict[int, Standing] = {}
        self._until: dict[int, int] = {}

    def begin_search(self, known: Sequence[str], order: Order | None) -> None:
        self._known, self._order = set(known), order

    def keep(self, number: int, standing: Standing) -> None:
        self._standings[number] = standing

    def measured(self, number: int) -> Measurement:
        return _measured(self._standings[number])

    def go_on(self, number: int, until: int) -> None:
        self._until[number] = until

    def end(self, number: int, known: str | None) -> None:
        self._standings.pop(number, None)
        if known is not None:
            self._known.add(known)

    def begin(self, number: int, recipe: Recipe) -> None:
        self._begun[number] += 1
        if self._begun[number] > self._fails.get(number, 99) or (self._order is None and number in self._fails):
            self._steps[number] = Step(recipe, GivenUp("its engines were lost"))
            self._going.pop(number, None)
            return
        self._steps[number] = Step(recipe, self._next(number, recipe))

    def take(self, number: int, timeout: float | None = None) -> Step:
        return self._steps.pop(number)

    def halt(self, number: int) -> tuple[Measurement, Standing]:
        recipe, count, start = self._going.pop(number)
        before = self._standings.get(number, Standing(recipe.digest))
        spent = Spent(seconds=before.cost.spent.seconds + count - start, tokens=TOKENS * count)
        assert self._order is not None
        items = {place: answer(recipe, place) for place in self._order.places[:count]}
        standing = Standing(recipe.digest, items, Cost(0.1, 0.2, spent, (0,), before.cost.reused))
        self._standings[number] = standing
        return _measured(standing), standing

    def _next(self, number: int, recipe: Recipe) -> Measurement | Look | None:
        if number not in self._going and number not in self._standings and recipe.digest in self._known:
            return None
        if self._order is None:
            before = self._standings.pop(number, Standing(recipe.digest))
            new = [place for place in range(len(DOMAINS) * PER_DOMAIN) if place not in before.items]
            self.asked += len(new)
            items = {place: answer(recipe, place) for place in new} | dict(before.items)
            return _measured(Standing(recipe.digest, items, before.cost))
        start = self._standings[number].count if number in self._standings else 0
        _, count, start = self._going.get(number, (recipe, start, start))
        if count == start:
            self.gone.append((number, start))
        until = next(one for one in (*self._order.looks, len(self._order.places)) if one > count)
        until = self._until.pop(number, until)
        self._going[number] = recipe, until, start
        self.asked += until - count
        return Look(until, {place: answer(recipe, place) for place in self._order.places[count:until]})


def answer(recipe: Recipe, place: int) -> GradedItem:
    """Right or wrong: hard items are hard for all, and merges near the best solve more of them."""
    domain = DOMAINS[place // PER_DOMAIN]
    coefficients = recipe.parameters["scaling_coef"]
    far = sum((coefficients[name] - best) ** 2 for name, best in BEST.items())
    difficulty, luck = np.random.default_rng([place, zlib.crc32(recipe.digest.encode())]).normal(size=2)
    difficulty = np.random.default_rng(place).normal()
    return item(place, domain, float(0.8 - 2 * far > difficulty + 0.4 * luck))


def trade_off(recipe: Recipe, place: int) -> GradedItem:
    """More of a specialist's coefficient is more of its domain and less of the others."""
    domain = DOMAINS[place // PER_DOMAIN]
    coefficients = recipe.parameters["scaling_coef"]
    others = sum(coefficients[name] for name in BEST if name != domain)
    right = coefficients[domain] - 0.3 * others > np.random.default_rng(place).normal(0.2, 0.3)
    return item(place, domain, float(right))


def item(place: int, domain: str, score: float) -> GradedItem:
    row = ItemRow(
        domain=domain,
        task=f"{domain}_task",
        item=str(place),
        cluster=f"c{place}",
        prompt_digest=f"p{place}",
        answer=f"answer {score:g}",
        score=score,
        judgement="",
    )
    return GradedItem(score, row, None)


def made_up_tasks() -> list[Any]:
    """The tasks whose items these are."""
    told: Any = SimpleNamespace(aggregation=lambda: {"m": mean}, config=SimpleNamespace())
    rest: dict[str, Any] = {"metric": "m", "one_minus": False, "filter_name": "", "judged": None, "batch_scorer": None}
    rest["num_documents"] = PER_DOMAIN
    found: list[Any] = []
    for number, domain in enumerate(DOMAINS):
        places = range(number * PER_DOMAIN, (number + 1) * PER_DOMAIN)
        asked = [{"id": str(place), "prompt_digest": f"p{place}", "cluster": f"c{place}"} for place in places]
        items: Any = tuple(SimpleNamespace(**one, doc={}) for one in asked)
        found.append(ScoredTask(name=f"{domain}_task", domain=domain, items=items, task=told, **rest))
    return found


def _scores_of(rows: Sequence[ItemRow]) -> list[float]:
    return [float(row["score"] or 0.0) for row in rows]


def _measured(standing: Standing) -> Measurement:
    rows = [standing.items[place].row for place in sorted(standing.items)]
    domains = {}
    for domain in DOMAINS:
        scores = _scores_of([row for row in rows if row["domain"] == domain])
        if scores:
            domains[domain] = DomainScore(float(np.mean(scores)), 0.05, len(scores))
    cost = standing.cost
    scores = Scores("validation", domains, rows, standing.version, cost.spent.seconds, 0.0, cost.spent.tokens, 0)
    seconds = (cost.merge_seconds, cost.load_seconds, cost.spent.seconds)
    return Measurement(scores, *seconds, cost.engines, standing.items, cost.reused)


def _order(options: RaceOptions, raced: RaceOrder | None) -> Order | None:
    return None if raced is None else order_of(options, raced, on_gpus=False)


_STUDIES: dict[Path, optuna.storages.BaseStorage] = {}
"""By a run's folder: a database takes two thirds of such a search's time. They never propose again what had begun."""


class MadeUpSearch:
    """One sitting of a search in a folder.

    Args:
        folder: the run's; what an earlier sitting left there is gone on with.
        scorer: what has the answers.
        search: keys of the sweep's search section.
        engines: that the sweep asks for.
        gpus: that the search holds.
        storage: of the study; None for one in memory, which the folder's later sittings find again.
        reuses: whether it looks for items in the runs beside it.
        coefficient: what each specialist's coefficient may be.
        conditions: what answers depend on besides weights and items.
        device: that engines compute on.
    """

    def __init__(
        self,
        folder: Path,
        scorer: Any,
        search: Mapping[str, Any],
        *,
        engines: int = 1,
        gpus: float = 0.0,
        storage: optuna.storages.BaseStorage | None = None,
        reuses: bool = False,
        coefficient: Mapping[str, Any] = COEFFICIENT,
        conditions: Mapping[str, Any] | None = None,
        device: str = "made up",
    ) -> None:
        self.storage = storage or _STUDIES.setdefault(folder, optuna.storages.InMemoryStorage())
        methods = {"task_arithmetic": {"scaling_coef": dict(coefficient)}}
        content = {
            **{"name": "x", "suite": "smollm2-mini", "methods": methods},
            **{"search": {"free_proposals": False, **search}, "engine": {"count": engines}},
        }
        self.sweep = Sweep.model_validate(content)
        self.space = Space(self.sweep, list(DOMAINS), None)
        self.run = RunFolder(folder)
        self.scorer = scorer
        self.store = TrialStore(folder)
        self.finished: list[Trial] = []
        self.decided: list[Decision] = []
        self.started: list[int] = []
        self.said: list[str] = []
        self.session: Any = SimpleNamespace(
            domains=list(DOMAINS),
            specialists=dict.fromkeys(DOMAINS),
            engine_dtype="float32",
            engine_device=device,
            items_digest=lambda split, domains: "items",
            scorer=scorer,
            bank=MadeUpBank(),
        )
        tasks = made_up_tasks()
        folders = run_folders(folder) if reuses else {}
        earlier = EarlierItems(folders, {"validation": tasks}, conditions or {}, lambda _text: None)
        self.records = Records(self.session, self.store, lambda _text: None, self.sweep.search, earlier)
        if not self.store.trials():
            self._score_references()
        self.options, _ = chosen_race(self.sweep, tasks)
        work = Work({"validation": len(DOMAINS) * PER_DOMAIN}, methods=1, raced=self.options.kind != "none")
        self.budget = RunBudget(self.sweep.search, work, gpus, self.store, Sittings(self.run))

    def _score_references(self) -> None:
        everything = range(len(DOMAINS) * PER_DOMAIN)
        for role, name, quality in (("base", "base", 0.2), ("average", "average", 0.5)):
            self._append(role, name, {place: self._reference_item(place, quality) for place in everything})
        for domain in DOMAINS:
            place = DOMAINS.index(domain) * PER_DOMAIN
            own = {one: self._reference_item(one, 0.9) for one in range(place, place + PER_DOMAIN)}
            self._append("specialist", domain, own)

    def _append(self, role: Any, name: str, items: GradedItems) -> None:
        domains = {}
        for domain in DOMAINS:
            scores = _scores_of([one.row for one in items.values() if one.row["domain"] == domain])
            if scores:
                domains[domain] = DomainScore(float(np.mean(scores)), 0.05, len(scores))
        took = {"tokens": TOKENS * len(items), "score_seconds": float(len(items))}
        row = Trial(role, name, "validation", f"{role}-{name}", "items", domains=domains, **took)
        self.store.append(row, self.records.item_rows("validation", items))

    def _reference_item(self, place: int, quality: float) -> GradedItem:
        random = np.random.default_rng(place)
        return item(place, DOMAINS[place // PER_DOMAIN], float(quality > random.random()))

    def drive(self) -> None:
        """The search to its end, with one engine and without Tune."""
        goal = self.records.goal("validation")
        study = RunStudy(self.storage, "x", self.run, *goal.objectives)
        study.study.sampler = search_sampler(self.sweep.search, self.space)
        said = warm_start.begin_with(self.run, self.store, self.records, study, self.space)
        self.said += said
        besides = raced_besides(self.store.trials())
        expected = self.budget.expected(UnderWay())
        candidates = None if expected is None else expected + besides
        raced = race_of(self.options, self.sweep, self.run, self.store, goal, candidates)
        known = [one.digest for one in self.store.trials() if one.role == "candidate"]
        self.scorer.begin_search(known, _order(self.options, raced))

        def recipe_of(number: int) -> Recipe:
            return self.session.bank.recipe(*self.space.candidate(study.study.trials[number].params))

        parts = {"session": self.session, "store": self.store, "records": self.records, "run": self.run}
        told = {"on_finish": self.finished.append, "on_decision": self.decided.append}
        running = RunningSearch(**parts, study=study, raced=raced, **told)
        racing = Racing(running, recipe_of)
        most = self.budget.most_candidates
        racing.restore(most + besides)
        study.reconcile(proposed(self.store.trials()))
        points = self.space.points(self.sweep.search.points_to_evaluate)
        study.queue(points, free_proposals(self.sweep, self.space, self.session.bank))
        left = most - len(proposed(self.store.trials()))
        told = set(racing.values)

        def tell() -> None:
            for number in sorted(racing.values.keys() - told):
                value = racing.values[number]
                study.study.tell(number, value, state=TrialState.FAIL if value is None else None)
                told.add(number)

        def go(number: int) -> None:
            decided = "go on"
            while decided == "go on":
                self.scorer.begin(number, recipe_of(number))
                step = self.scorer.take(number)
                decided = racing.step(number, step.recipe, step.found)
            tell()

        for _ in range(left):
            while racing.raised and not racing.come_again():
                go(racing.raised.popleft())
            if not racing.come_again() and not self.budget.pays_another(racing.under_way(0)):
                break
            trial = study.study.ask()
            self.space.suggest(trial)
            if racing.begin(trial.number) == "go on":
                go(trial.number)
            tell()
        while racing.raised:
            go(racing.raised.popleft())
        racing.close()
        tell()
        while racing.raised:
            go(racing.raised.popleft())
        assert not racing.is_open()
