from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import CommandLine
from mergebench_data import ifeval, multiple_choice
from mergebench_ray.config import CalibrationSource, Suite, Sweep
from mergebench_ray.config.evaluation import EvaluationOptions
from mergebench_ray.errors import InputError
from mergebench_ray.evaluation.grading import grade
from mergebench_ray.tasks.data_use import check_data_is_used
from mergebench_ray.tasks.loading import load_tasks
from mergebench_ray.tasks.local_data import LocalSplits, local_datasets, read_rows
from mergebench_ray.tasks.scored_task import ScoredTask
from task_files import write_lines

ROWS: list[dict[str, Any]] = [{"id": "1", "text": "caf\u00e9", "number": 3}, {"id": "2", "text": "tea", "number": 4}]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def one_task(name: str, data: dict[str, str], split: Any = "test", **settings: Any) -> ScoredTask:
    """A task of lm-eval's own, on a suite that a user might write."""
    folders = {"m_mmlu_fr": "okapi/mmlu_multilingual", "squadv2": "squadv2", "ifeval": "ifeval"}
    suite = Suite.model_validate(
        {"name": "s", "lm_eval_folders": [folders[name]], "domains": {"d": {"tasks": {name: settings}}}}
    )
    return load_tasks(suite, split, EvaluationOptions(data=data))[0]


def write_file(file: Path) -> None:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    elif file.suffix == ".csv":
        file.write_text("id,text,number\n" + "".join(f"{r['id']},{r['text']},{r['number']}\n" for r in ROWS))
    elif file.suffix == ".json":
        file.write_text(json.dumps(ROWS, indent=1))
    else:
        write_lines(file, ROWS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_each_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"some{suffix}"
    write_file(file)
    rows = read_rows(file)
    assert [{**row, "number": int(row["number"])} for row in rows] == ROWS
    assert LocalSplits("a/b", None, file, "test")["test"]["text"][:] == ["caf\u00e9", "tea"]


PLACES = ["fr/test.jsonl", "fr_test.jsonl", "test.jsonl", "data/test.jsonl", "fr/test-00000-of-00001.parquet"]


@pytest.mark.parametrize("place", PLACES)
def test_a_split_is_found_in_a_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    write_file(tmp_path / place)
    write_lines(tmp_path / "test_other.jsonl", ROWS[:1])
    assert LocalSplits("a/b:fr", "fr", tmp_path, None)["test"]["id"][:] == ["1", "2"]


def test_shards_are_read_in_order_and_lacking_fields_are_none(tmp_path: Path) -> None:
    write_lines(tmp_path / "test-00001-of-00002.jsonl", ROWS[1:])
    write_lines(tmp_path / "test-00000-of-00002.jsonl", [{"id": "1"}])
    assert LocalSplits("a/b", None, tmp_path, None)["test"].to_list() == [
        {"id": "1", "text": None, "number": None},
        ROWS[1],
    ]


REFUSED: list[tuple[str, str, str]] = [
    ("some.jsonl", '{"id": 1}\n\n{"id": 2,}\n', r"some\.jsonl, line 3: not valid JSON"),
    ("some.jsonl", '{"id": 1}\n[2]\n', r"some\.jsonl, line 2: expected an object of fields, found list"),
    ("some.json", '[{"id": 1},\n {"id": }]', r"some\.json, line 2: not valid JSON"),
    ("some.json", '{"id": 1}', r"some\.json: expected a list of objects"),
    ("some.jsonl", "\n", r"some\.jsonl: holds no item"),
    ("some.parquet", "no parquet", r"some\.parquet: cannot be read"),
    ("some.jsonl", '{"id": 1}\n{"id": "two"}\n', r"some\.jsonl: field 'id' mixes kinds of values"),
    ("some.jsonl", '{"id": ' + "9" * 5000 + "}", r"some\.jsonl, line 1: not usable JSON"),
    ("some.jsonl", '{"id": ' + "9" * 30 + "}", r"some\.jsonl: field 'id'"),
    ("some.jsonl", '{"id": ' + "[" * 100_000 + "}", r"some\.jsonl, line 1: not usable JSON"),
    ("some.jsonl", '{"id": "\\ud800"}', r"some\.jsonl, line 1: not usable JSON .*surrogates"),
    ("some.json", '[{"id": "\\ud800"}]', r"some\.json: not usable JSON .*surrogates"),
    ("some.csv", "a,b\n1\n", r"some\.csv, line 2: not one value for each of 2 columns"),
    ("some.csv", "a,b\n1,2,3\n", r"some\.csv, line 2: not one value for each of 2 columns"),
    ("some.csv", "a,a\n1,2\n", r"some\.csv: two columns have the same name"),
    ("some.csv", "a\n", r"some\.csv: holds no item"),
    ("some.txt", "1\n", r"some\.txt: not a data file; give one that ends in \.jsonl"),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        _ = LocalSplits("a/b", None, tmp_path / name, None)["test"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_what_is_no_file_or_no_text_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    pipe, folder, latin = (tmp_path / f"{name}{suffix}" for name in ("pipe", "folder", "latin"))
    os.mkfifo(pipe)
    folder.mkdir()
    latin.write_bytes("caf\u00e9".encode("latin-1"))
    for path in (pipe, folder):
        with pytest.raises(InputError, match="not a regular file"):
            read_rows(path)
    with pytest.raises(InputError, match="a pipe or device"):
        LocalSplits("a/b", None, pipe, None)
    with pytest.raises(InputError, match=r"latin.*cannot be read"):
        read_rows(latin)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"some{suffix}"
    write_file(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert list(read_rows(file)[0]) == list(ROWS[0])


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data a/b: .*nowhere: no such file or folder"):
        LocalSplits("a/b", None, tmp_path / "nowhere", None)
    write_lines(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no file for the split 'test', only train\.jsonl; add test\.jsonl"):
        _ = LocalSplits("a/b", None, tmp_path, None)["test"]


def test_a_configuration_of_its_own_comes_before_the_whole_data_set(tmp_path: Path) -> None:
    french, other = tmp_path / "french.jsonl", tmp_path / "other.jsonl"
    write_lines(french, [multiple_choice(1)])
    write_lines(other, [multiple_choice(2)])
    data = {"alexandrainst/m_mmlu": str(other), "alexandrainst/m_mmlu:fr": str(french)}
    assert [item.id for item in one_task("m_mmlu_fr", data, metric="acc").items] == ["item-1"]
    assert [item.id for item in one_task("m_mmlu_fr", {"alexandrainst/m_mmlu": str(other)}, metric="acc").items] == [
        "item-2"
    ]


def test_nothing_stays_replaced_afterwards(tmp_path: Path) -> None:
    before = datasets.load_dataset
    write_lines(tmp_path / "a.jsonl", ROWS)
    with local_datasets({"a/b": str(tmp_path / "a.jsonl")}, None):
        assert datasets.load_dataset("a/b", split="test", trust_remote_code=False).to_list() == ROWS
    assert datasets.load_dataset is before
    with (
        pytest.raises(InputError, match="no such file"),
        local_datasets({"a/b": str(tmp_path / "b.jsonl")}, None),
    ):
        datasets.load_dataset("a/b", trust_remote_code=False)
    assert datasets.load_dataset is before


def test_a_function_that_makes_a_tasks_data_may_read_local_files(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "Say yes.", "a": "yes"}) + "\n")
    (tmp_path / "made.py").write_text(
        "import datasets\n\ndef rows(**_):\n    return {'test': datasets.load_dataset('owner/name', split='test')}\n"
    )
    (tmp_path / "made.yaml").write_text(
        "task: made\ncustom_dataset: !function made.rows\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\nmetric_list: [{metric: exact_match}]\n"
    )
    file = tmp_path / "suite.yaml"
    file.write_text("name: s\ntasks_folder: .\ndomains: {text: {tasks: {made: exact_match}}}\n")
    data = {"owner/name": str(tmp_path / "rows.jsonl")}
    suite = Suite.load(str(file))
    check_data_is_used(suite, data)
    (task,) = load_tasks(suite, "test", EvaluationOptions(data=data))
    assert task.items[0].instances[0].args[0] == "Say yes."
    with pytest.raises(InputError, match="no task of suite s reads 'owner/nam'"):
        check_data_is_used(suite, {"owner/nam": "x"})


def test_a_domain_that_cannot_be_read_keeps_no_data_from_the_others(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("task: good\ndataset_path: owner/name\ntest_split: test\n")
    (tmp_path / "bad.yaml").write_text("task: bad\ndataset_path: owner/other\ndataset_kwargs: 3\n")
    file = tmp_path / "suite.yaml"
    file.write_text("name: s\ntasks_folder: .\ndomains: {a: {tasks: {good: acc}}, b: {tasks: {bad: acc}}}\n")
    check_data_is_used(Suite.load(file), {"owner/name": "x"})
    message = "no task of suite s reads 'owner/other'; did you mean 'owner/name'.*task bad: dataset_kwargs"
    with pytest.raises(InputError, match=message):
        check_data_is_used(Suite.load(file), {"owner/other": "x"})


def test_a_task_that_is_a_class_reads_local_files_too(tmp_path: Path) -> None:
    row = {"id": "1", "title": "T", "context": "C.", "question": "Q?", "answers": {"text": ["a"], "answer_start": [0]}}
    for split in ("train", "validation"):
        write_lines(tmp_path / f"{split}.jsonl", [row])
    task = one_task("squadv2", {"lighteval/squad_v2": str(tmp_path)}, "validation", metric="f1")
    assert task.items[0].instances[0].args[0].startswith("Title: T\n\nBackground: C.")


def test_a_single_file_is_no_source_of_examples_for_its_own_questions(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [multiple_choice(n) for n in range(6)])
    data = {"alexandrainst/m_mmlu": str(tmp_path / "a.jsonl")}
    with pytest.raises(InputError, match=r"stands for the split 'test', but 'train' is needed too; give a folder"):
        one_task("m_mmlu_fr", data, metric="acc", num_fewshot=2)
    write_lines(tmp_path / "test.jsonl", [multiple_choice(n) for n in range(6)])
    write_lines(tmp_path / "train.jsonl", [multiple_choice(n) for n in range(10, 16)])
    task = one_task("m_mmlu_fr", {"alexandrainst/m_mmlu": str(tmp_path)}, metric="acc", num_fewshot=2)
    assert task.items[0].instances[0].args[0].count("Answer:") == 3


def test_a_missing_field_is_one_error_with_file_field_and_task(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [multiple_choice(n) for n in range(3)]
    del rows[1]["option_c"]
    write_lines(file, rows)
    with pytest.raises(InputError, match=r"task m_mmlu_fr: .*a\.jsonl, item 2: field 'option_c' is missing"):
        one_task("m_mmlu_fr", {"alexandrainst/m_mmlu": str(file)}, metric="acc")
    for lacking in ("prompt", "instruction_id_list", "kwargs", "key"):
        write_lines(file, [{key: value for key, value in ifeval(3).items() if key != lacking}])
        data = {"google/IFEval": str(file)}
        with pytest.raises(InputError, match=rf"task ifeval: .*a\.jsonl.*field '{lacking}' is missing"):
            one_task("ifeval", data, metric="prompt_level_strict_acc", test_split="train", try_grading=True)


def test_data_without_a_local_copy_say_how_to_give_one() -> None:
    with pytest.raises(InputError, match=r"data set google/IFEval cannot be had .*--data google/IFEval=PATH"):
        one_task("ifeval", {}, metric="prompt_level_strict_acc", test_split="train")
    gated = Suite.load("mergebench").only_tasks(["wildguardtest"], "test")
    with pytest.raises(InputError, match=r"wildguardmix:wildguardtest is gated; accept its licence at .*HF_TOKEN, or"):
        load_tasks(gated, "test", EvaluationOptions())


def test_a_sweep_sends_data_sets_to_absolute_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {
        "name": "s",
        "suite": "mergebench",
        "methods": {"ties": None},
        "evaluation": {"data": {"a/b": "c.jsonl"}},
    }
    Path("sweep.yaml").write_text(json.dumps(content))
    assert Sweep.from_yaml(Path("sweep.yaml")).evaluation.data == {"a/b": str(tmp_path / "c.jsonl")}


def test_multilingual_mmlu_is_asked_as_lm_eval_asks_it(tmp_path: Path) -> None:
    languages = ("fr", "es", "de")
    for number, language in enumerate(languages):
        rows = [{**multiple_choice(n), "instruction": f"Où est {language} {n} ?"} for n in range(6 + number)]
        write_lines(tmp_path / f"{language}_test.jsonl", rows)
    suite = Suite.load("mergebench").only_tasks([f"m_mmlu_{language}" for language in languages], "test")
    tasks = load_tasks(suite, "test", EvaluationOptions(data={"alexandrainst/m_mmlu": str(tmp_path)}))
    assert [len(task.items) for task in tasks] == [6, 7, 8]
    prompts = [one.args[0] for one in tasks[0].items[1].instances]
    choices = "".join(f"\n{letter}. choice {letter.lower()} 1" for letter in "ABCD")
    assert prompts == [f"Où est fr 1 ?{choices}\nAnswer:"] * 4
    gold = [[[(float(item.doc["answer"] == letter), False)] for letter in "ABCD"] for item in tasks[0].items]
    assert grade(tasks[0], gold) == [1.0] * 6


def test_ifeval_divides_into_validation_and_test_and_each_instruction_is_graded(tmp_path: Path) -> None:
    # Of each kind of instruction that needs no model of language: what is wanted, its options, and a fitting answer.
    kinds: list[tuple[str, dict[str, Any], str]] = [
        ("punctuation:no_comma", {}, "no commas here"),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": 4}, "one two three four five"),
        ("keywords:existence", {"keywords": ["river", "stone"]}, "a stone in the river"),
        ("startend:end_checker", {"end_phrase": "The end."}, "It was so. The end."),
        ("detectable_format:json_format", {}, '{"a": 1}'),
        ("startend:quotation", {}, '"all of it"'),
        ("combination:two_responses", {}, "one ****** two"),
    ]
    rows = [
        {"key": key, "prompt": f"Item {key}.", "instruction_id_list": [kind], "kwargs": [options]}
        for key in range(400)
        for kind, options, _ in [kinds[key % len(kinds)]]
    ]
    write_lines(tmp_path / "ifeval.jsonl", rows)
    suite = Suite.load("mergebench").only_tasks(["ifeval"], "test")
    options = EvaluationOptions(data={"google/IFEval": str(tmp_path / "ifeval.jsonl")})
    validation, test = (load_tasks(suite, split, options)[0] for split in ("validation", "test"))
    keys = [{item.doc["key"] for item in task.items} for task in (validation, test)]
    assert not keys[0] & keys[1]
    assert keys[0] | keys[1] == set(range(400))
    assert 0.15 < len(keys[0]) / len(rows) < 0.25
    fitting = [[[kinds[item.doc["key"] % len(kinds)][2]]] for item in test.items]
    assert grade(test, fitting) == [1.0] * len(test.items)
    others = [[[kinds[(item.doc["key"] + 1) % len(kinds)][2]]] for item in test.items]
    assert 0 < sum(grade(test, others)) < len(test.items) / 2


def test_harmful_requests_go_into_the_published_template(tmp_path: Path) -> None:
    rows = [{"Behavior": f"Do harm {{{number}}}\n, then more."} for number in range(8)]
    write_lines(tmp_path / "a.jsonl", rows)
    suite = Suite.load("mergebench-published-proxies").only_tasks(["harmbench"], "test")
    data = {"allenai/tulu-3-harmbench-eval": str(tmp_path / "a.jsonl")}
    task = load_tasks(suite, "test", EvaluationOptions(data=data))[0]
    assert [item.instances[0].args[0] for item in task.items] == [
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{row['Behavior']}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        for row in rows
    ]


def test_data_that_no_task_reads_is_refused_with_the_closest(run: CommandLine, tmp_path: Path) -> None:
    write_file(tmp_path / "some.jsonl")
    suite = Suite.model_validate(
        {"name": "s", "lm_eval_folders": ["okapi/mmlu_multilingual"], "domains": {"d": {"tasks": {"m_mmlu_fr": "acc"}}}}
    )
    read = "alexandrainst/m_mmlu"
    for known in (read, f"{read}:fr"):
        check_data_is_used(suite, {known: "x"})
    with pytest.raises(InputError, match=f"no task of suite s reads 'alexandria/m_mmlu'; did you mean .*{read}'"):
        check_data_is_used(suite, {read: "x", "alexandria/m_mmlu": "x"})
    check_data_is_used(suite, {"mine": "x"}, [CalibrationSource(data="mine")])
    (tmp_path / "model").mkdir()
    arguments = ["--data", f"some={tmp_path / 'some.jsonl'}"]
    for command in (["evaluate", tmp_path / "model", "--suite", "smollm2-mini"], ["data", "check", "smollm2-mini"]):
        assert "bring data of their own" in run.refused(*command, *arguments)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"name: x\nsuite: smollm2-mini\nmethods: {{ties: {{density: {{low: 0.1, high: 0.5}}}}}}\n"
        f"evaluation: {{allow_code_execution: true, data: {{some: {tmp_path / 'some.jsonl'}}}}}\n"
    )
    for line in (run.refused("plan", sweep), run.refused("tune", sweep, "--out", tmp_path / "run")):
        assert "evaluation.data: no task of suite" in line
