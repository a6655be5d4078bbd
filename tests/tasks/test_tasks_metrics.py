"""Metrics: found, counted the right way, with values that no mean can take: as lm-eval does, or refused in one line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import mean, perplexity

from made_up_trials import made_up_trials
from mergebench_ray.config import Suite
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.config.yaml_files import to_yaml
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.grading import ABSENT, grade, item_score, task_estimate
from mergebench_ray.runs.opening import check_same_items
from mergebench_ray.scores import DomainScore
from mergebench_ray.search.objectives.normalised_average import NormalisedAverage
from mergebench_ray.search.objectives.objective import References
from mergebench_ray.search.objectives.shares import check_references
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.scored_task import ScoredTask, items_digest, notes_of
from task_files import write_choice_task, write_generation_task, write_task

PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_choice_task(tasks)
    write_choice_task(tasks, "brier", metric_list=[{"metric": "brier_score"}])
    write_task(tasks, "likely", output_type="loglikelihood", doc_to_target=" {{city}}", metric_list=[PERPLEXITY])
    return tasks


def loaded(folder: Path, domains: dict[str, dict[str, Any]], split: Any = "test") -> list[ScoredTask]:
    file = folder.parent / "suite.yaml"
    wrapped = {domain: {"tasks": tasks} for domain, tasks in domains.items()}
    file.write_text(to_yaml({"name": "small", "tasks_folder": "tasks", "domains": wrapped}))
    return load_tasks(Suite.load(str(file)), split, EvaluationOptions())


def scored(folder: Path, process_results: str, metric: str = "mine", aggregation: str = "mean") -> ScoredTask:
    """A task whose metric is the value that this Python expression makes of `answer`, or of `doc`."""
    (folder / "mine.py").write_text(
        f"import math\n\ndef score(doc, results):\n    answer = results[0]\n    return {process_results}\n"
    )
    listed = {"metric": metric, "aggregation": aggregation, "higher_is_better": True}
    write_task(folder, "own", output_type="generate_until", metric_list=[listed])
    with (folder / "own.yaml").open("a") as file:
        file.write("process_results: !function mine.score\n")
    return loaded(folder, {"facts": {"own": metric}})[0]


# Directions


def test_a_metric_counts_the_way_that_its_task_says(folder: Path) -> None:
    likely, choice = loaded(folder, {"text": {"likely": "perplexity"}, "facts": {"capital_choice": "acc"}})
    assert (likely.higher_is_better, likely.counted) == (False, "perplexity, lower is better")
    assert (choice.higher_is_better, choice.counted) == (True, "acc")
    assert notes_of([likely, choice]) == []


def test_a_suite_may_say_otherwise_and_it_is_noted(folder: Path) -> None:
    (turned,) = loaded(folder, {"text": {"likely": {"metric": "perplexity", "higher_is_better": True}}})
    assert turned.higher_is_better
    (minus,) = loaded(folder, {"facts": {"capital_choice": {"metric": "acc", "one_minus": True}}})
    assert (minus.higher_is_better, minus.counted) == (True, "1 - acc")
    assert notes_of([turned, minus]) == [
        "task likely: the suite counts perplexity as better when higher, lm-eval as better when lower",
        "task capital_choice: the suite counts acc as better when lower, lm-eval as better when higher",
    ]


def test_a_run_of_before_directions_counted_is_told_so_and_not_to_undo_a_change(folder: Path, tmp_path: Path) -> None:
    plain = loaded(folder, {"facts": {"capital_choice": "acc"}})
    turned = loaded(folder, {"facts": {"capital_choice": {"metric": "acc", "one_minus": True}}})
    items, as_earlier = ({"test": items_digest(turned, directions=known)} for known in (True, False))
    assert items_digest(plain) == as_earlier["test"] != items["test"]
    trials = [replace(trial, items_digest=as_earlier["test"]) for trial in made_up_trials(1) if trial.split == "test"]
    with pytest.raises(InputError, match=r"an earlier version .* one_minus .* start a new run") as caught:
        check_same_items(tmp_path, trials, items, as_earlier)
    assert "undo" not in str(caught.value)


def test_a_metric_whose_direction_nobody_says_is_refused_until_the_suite_says_it(folder: Path) -> None:
    write_task(
        folder,
        "own",
        output_type="generate_until",
        process_results="mine.score",
        metric_list=[{"metric": "mine", "aggregation": "mean"}],
    )
    with pytest.raises(InputError, match="neither task file nor suite says which way metric 'mine' counts"):
        loaded(folder, {"facts": {"own": "mine"}})
    (task,) = loaded(folder, {"facts": {"own": {"metric": "mine", "higher_is_better": False}}})
    assert not task.higher_is_better


def test_a_share_that_should_be_low_is_noted_since_0_cannot_be_normalised(folder: Path) -> None:
    low = {"metric": "acc", "aggregation": "mean", "higher_is_better": False}
    write_choice_task(folder, metric_list=[low])
    (task,) = loaded(folder, {"facts": {"capital_choice": "acc"}})
    (note,) = notes_of([task])
    assert "task capital_choice: acc is better when lower; a candidate of 0, the best there is, cannot be" in note
    assert "set one_minus: true" in note
    assert notes_of(loaded(folder, {"facts": {"capital_choice": {"metric": "acc", "one_minus": True}}})) == []


def test_a_direction_that_is_a_text_is_refused(folder: Path) -> None:
    """Any text would count as true."""
    write_choice_task(folder, metric_list=[{"metric": "acc", "higher_is_better": "false"}])
    with pytest.raises(InputError, match="metric 'acc': higher_is_better: 'false': give true or false"):
        loaded(folder, {"facts": {"capital_choice": "acc"}})


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (
            {"text": {"likely": {"metric": "perplexity", "one_minus": True}}},
            "task likely: one_minus is for metrics from 0 to 1, and perplexity is from 1 up",
        ),
        (
            {"facts": {"brier": {"metric": "brier_score", "one_minus": True}}},
            "task brier: one_minus is for metrics from 0 to 1, and brier_score is from 0 to 2",
        ),
        (
            {"facts": {"capital_choice": "acc", "likely": "perplexity"}},
            "domain 'facts': higher is better for capital_choice (acc), lower for likely",
        ),
        (
            {"facts": {"capital_choice": {"metric": "acc", "one_minus": True, "higher_is_better": True}}},
            "one_minus is for metrics where lower is better",
        ),
        ({"facts": {"capital_choice": "ac"}}, "task capital_choice has no metric 'ac'; did you mean 'acc'"),
    ],
)
def test_what_could_not_be_normalised_is_refused_when_the_suite_is_read(
    folder: Path, domains: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError) as error:
        loaded(folder, domains)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


# What there is


LISTED = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}


@pytest.mark.parametrize(
    ("metric_list", "counted", "expected"),
    [
        ([LISTED], "accc", "no metric 'accc'; did you mean 'acc'?"),
        ([LISTED | {"metric": "accc"}], "accc", "scoring of multiple_choice has no metric 'accc'; did you mean 'acc'?"),
        ([{"metric": "accc"}], "accc", "metric 'accc' is none of lm-eval's and has no aggregation"),
        ([LISTED | {"aggregation": "meann"}], "acc", "lm-eval has no aggregation 'meann'; did you mean 'mean'"),
        ([{"aggregation": "mean"}], "acc", "metric_list: an entry has no metric: {'aggregation': 'mean'}"),
        ([LISTED | {"metric": None}], "acc", "metric_list: an entry has no metric"),
        ([], "acc", "metric_list: give a list, each with its metric"),
        ("acc", "acc", "metric_list: give a list, each with its metric"),
        ([LISTED], "acc,strict", "no filter 'strict'; known: none"),
        (None, "f1", "no metric 'f1'; known: acc, acc_norm"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_by_its_name(
    folder: Path, metric_list: Any, counted: str, expected: str
) -> None:
    write_choice_task(folder, metric_list=metric_list)
    with pytest.raises(InputError) as error:
        loaded(folder, {"facts": {"capital_choice": counted}})
    assert "task capital_choice" in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("filter_list", "counted", "expected"),
    [
        (None, "exact_match,x", "no filter 'x'; known: none"),
        (
            [{"name": "x", "filter": [{"function": "take_frist"}]}],
            "exact_match",
            "no function 'take_frist'; did you mean",
        ),
        ([{"filter": [{"function": "take_first"}]}], "exact_match", "filter_list: an entry has no name"),
        ([{"name": "x"}], "exact_match", "filter 'x': give a list under 'filter'"),
        ([{"name": "x", "filter": [{"a": 1}]}], "exact_match", "filter 'x': give a list under 'filter'"),
        ([{"name": "x", "filter": [{"function": "take_first"}]}], "exact_match,y", "no filter 'y'; known: x"),
    ],
)
def test_a_filter_that_is_not_there_is_refused_by_its_name(
    folder: Path, filter_list: Any, counted: str, expected: str
) -> None:
    write_generation_task(folder, filter_list=filter_list)
    with pytest.raises(InputError) as error:
        loaded(folder, {"facts": {"capital_text": counted}})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_filters_and_aggregations_that_a_tasks_own_file_registers_are_known(folder: Path) -> None:
    (folder / "registering.py").write_text(
        "from lm_eval.api.filter import Filter\n"
        "from lm_eval.api.registry import register_aggregation, register_filter\n\n"
        "@register_filter('shout')\n"
        "class Shout(Filter):\n"
        "    def apply(self, resps, docs):\n"
        "        return [[text.upper() for text in one] for one in resps]\n\n"
        "@register_aggregation('largest')\n"
        "def largest(values):\n"
        "    return max(values)\n\n"
        "def score(doc, results):\n"
        "    return {'length': len(results[0]) if results[0].isupper() else 0}\n"
    )
    write_generation_task(
        folder,
        filter_list=[{"name": "x", "filter": [{"function": "shout"}, {"function": "take_first"}]}],
        metric_list=[{"metric": "length", "aggregation": "largest", "higher_is_better": True}],
    )
    with (folder / "capital_text.yaml").open("a") as file:
        file.write("process_results: !function registering.score\n")
    (task,) = loaded(folder, {"facts": {"capital_text": "length,x"}})
    values = grade(task, [[["a" * count]] for count in range(len(task.items))])
    assert task_estimate(task, values)[0].value == len(task.items) - 1


def test_a_generation_metric_that_cannot_score_is_refused_before_anything_is_asked(folder: Path) -> None:
    write_generation_task(folder, metric_list=[LISTED | {"metric": "acc_mutual"}])
    with pytest.raises(InputError, match="task capital_text: its metrics cannot score an answer"):
        loaded(folder, {"facts": {"capital_text": "acc_mutual"}})


def test_a_metric_that_has_no_mean_is_refused_before_anything_is_asked(folder: Path) -> None:
    write_choice_task(folder, metric_list=[{"metric": "likelihood", "higher_is_better": True}])
    with pytest.raises(InputError, match="gives metric 'likelihood' as tuple, of which there is no mean"):
        loaded(folder, {"facts": {"capital_choice": "likelihood"}})


def test_a_split_that_is_not_there_is_refused_by_its_name(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"has no split 'tset' \(did you mean 'test'\?\); mend the task file or the suite"
    ):
        loaded(folder, {"facts": {"capital_choice": {"metric": "acc", "test_split": "tset"}}})


# Values


def test_items_that_a_metric_leaves_out_are_left_out_of_its_mean(folder: Path) -> None:
    task = scored(folder, "{'mine': float(answer)} if answer else {}")
    values = grade(task, [[[text]] for text in ("1", "", "0", "1", "", "1")])
    assert values == [1.0, ABSENT, 0.0, 1.0, ABSENT, 1.0]
    assert [item_score(task, value) for value in values] == [1.0, None, 0.0, 1.0, None, 1.0]
    estimate, count = task_estimate(task, values)
    present = [1.0, 0.0, 1.0, 1.0]
    assert (estimate.value, count) == (mean(present), 4)
    assert estimate.standard_error == pytest.approx(np.std(present, ddof=1) / 2)
    with pytest.raises(InputError, match="task own: none of its items has the metric mine"):
        task_estimate(task, [ABSENT] * 6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("None", "task own: the aggregation of its metric mine at item capital-6 failed (TypeError"),
        ("[1.0]", "metric mine at item capital-6 failed (TypeError"),
        ("{'a': 1}", "metric mine at item capital-6 failed (TypeError"),
        ("10 ** 400", "metric mine at item capital-6 failed (OverflowError"),
    ],
)
def test_values_that_a_mean_cannot_take_are_refused_in_one_line(folder: Path, value: str, expected: str) -> None:
    task = scored(folder, f"{{'mine': {value}}}")
    values = grade(task, [[["x"]] for _ in task.items])
    with pytest.raises(InputError) as error:
        task_estimate(task, values)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["True", "1", "1.0", "__import__('numpy').float32(1)"])
def test_truth_values_and_numbers_of_any_kind_count(folder: Path, value: str) -> None:
    task = scored(folder, f"{{'mine': {value}}}")
    estimate, _ = task_estimate(task, grade(task, [[["x"]] for _ in task.items]))
    assert (estimate.value, estimate.standard_error) == (1.0, 0.0)


def test_a_mean_over_what_is_no_number_is_none_as_in_lm_eval(folder: Path) -> None:
    task = scored(folder, "{'mine': math.nan}")
    estimate, _ = task_estimate(task, grade(task, [[["x"]] for _ in task.items]))
    assert math.isnan(estimate.value)


def test_the_perplexity_of_a_broken_model_is_infinite(folder: Path) -> None:
    (task,) = loaded(folder, {"text": {"likely": "perplexity"}})
    estimate, _ = task_estimate(task, [-5000.0] * len(task.items))
    assert estimate.value == math.inf
    some = [-1.0, -2.0, -3.0, -4.0, -1.0, -2.0]
    assert task_estimate(task, some)[0].value == perplexity(some)


def test_one_minus_of_more_than_1_is_below_0_and_ends_no_search(folder: Path) -> None:
    """An error rate of a broken model may be above 1; a specialist with one is refused where it is normalised by."""
    scored(folder, "{'mine': float(answer)}")
    (task,) = loaded(folder, {"facts": {"own": {"metric": "mine", "one_minus": True}}})
    assert [item_score(task, value) for value in (0.25, 1.5)] == [0.75, -0.5]
    assert task_estimate(task, [1.5] * 6)[0].turned().value == -0.5
    specialist, broken = DomainScore(0.8, 0.0, 6), DomainScore(-0.5, 0.0, 6)
    assert (NormalisedAverage(References({"facts": specialist})).value({"facts": broken.score}) or 0.0) < 0
    with pytest.raises(InputError, match=r"its specialist scores -0\.5"):
        check_references({"facts": broken})


@pytest.mark.parametrize(
    ("process_results", "expected"),
    [
        ("1 / 0", "task own: scoring item capital-6 failed (ZeroDivisionError: division by zero); mend its"),
        ("doc['absent']", "task own: scoring item capital-6 failed (KeyError: 'absent')"),
        ("0.5", "task own: scoring item capital-6 gave float, not metric -> value"),
    ],
)
def test_errors_of_a_tasks_own_scoring_are_one_line_that_names_the_item(
    folder: Path, process_results: str, expected: str
) -> None:
    task = scored(folder, process_results)
    with pytest.raises(InputError) as error:
        grade(task, [[["x"]] for _ in task.items])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


# Clusters


def test_items_with_the_same_named_fields_are_one_cluster_across_tasks(folder: Path) -> None:
    write_choice_task(folder, "other_choice")
    by = {"metric": "acc", "cluster_by": "country"}
    first, second = loaded(folder, {"facts": {"capital_choice": by, "other_choice": by}})
    assert [item.cluster for item in first.items] == [item.cluster for item in second.items]
    assert len({item.cluster for item in first.items}) == len(first.items)
    held_out, by_two = loaded(
        folder,
        {
            "facts": {
                "capital_choice": {"metric": "acc", "held_out_by": "gold", "test_split": "test"},
                "other_choice": {"metric": "acc", "cluster_by": ["gold", "city"]},
            }
        },
    )
    assert len({item.cluster for item in held_out.items}) == 1
    assert len({item.cluster for item in by_two.items}) == len(by_two.items)


def test_a_cluster_field_that_items_lack_is_refused_by_its_name(folder: Path) -> None:
    by = {"metric": "acc", "cluster_by": "countri"}
    with pytest.raises(
        InputError, match=r"item 1: no field 'countri', which the suite's cluster_by names; did you mean"
    ):
        loaded(folder, {"facts": {"capital_choice": by}})
