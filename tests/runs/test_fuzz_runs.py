"""Any content of a run's folder gives a report or one line, and is left as it was."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up_trials import made_up_trials
from mergebench_ray.errors import InputError
from mergebench_ray.report.method_sections import items_section
from mergebench_ray.report.method_table import methods_csv, methods_latex, methods_markdown
from mergebench_ray.report.pages import run_page
from mergebench_ray.runs.comparison import Run, compare
from mergebench_ray.runs.trial_store import TrialStore

TRIALS = made_up_trials(2)
ITEMS = [
    {"domain": "math", "task": "t", "item": "1", "prompt_digest": "aa", "answer": "7", "score": 1.0, "judgement": "ok"},
    {"domain": "math", "task": "t", "item": "2", "prompt_digest": "bb", "answer": "", "score": None, "judgement": ""},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ARROW = st.sampled_from(
    [
        pa.array(["a", None]),
        pa.array([1, 2]),
        pa.array([None, None]),
        pa.array([b"\xff", b""]),
        pa.array([[1], []]),
        pa.array([{"a": 1}, None]),
        pa.array(["x", "y"]).dictionary_encode(),
        pa.array([1.5, float("nan")]),
        pa.array([True, False]),
        pa.array(["{}", "[]"]),
        pa.array([json.dumps({"role": "base"}), "null"]),
        pa.array([0, 1], pa.timestamp("ns")),
    ]
)


def filled(folder: Path) -> Path:
    store = TrialStore(folder)
    for trial in TRIALS:
        store.append(trial, ITEMS)
    (folder / "items" / "questions-test.parquet").write_bytes(_questions())
    return folder


def _questions() -> bytes:
    columns = ("domain", "task", "item", "prompt_digest", "prompt", "expected")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: ["x"] for name in columns}), sink)
    return bytes(sink.getvalue())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of a good run, by file."""
    folder = filled(tmp_path_factory.mktemp("template") / "run")
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def reported(template: dict[str, bytes], change: Callable[[Path], None], *, page: bool = False) -> None:
    """Report on a good run with a change to it: it works, or is refused in one line; nothing is left or lost."""
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        for name, content in template.items():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)
        change(run)
        before = sorted(run.rglob("*"))
        # Its message is one line by its making.
        with suppress(InputError):
            found = Run.read(run)
            rows = compare([found])
            for export in (methods_csv, methods_markdown, methods_latex):
                export(rows).encode()
            items_section([found])
            if page:
                run_page(found).encode()
        assert sorted(run.rglob("*")) == before


def items_file(run: Path) -> Path:
    return next(file for file in sorted((run / "items").iterdir()) if "questions" not in file.name)


def any_parquet(run: Path, which: str) -> Path:
    return {"trials": run / "trials.parquet", "questions": run / "items/questions-test.parquet"}.get(
        which, items_file(run)
    )


WHICH = st.sampled_from(["trials", "items", "questions"])


@given(which=WHICH, data=st.data())
def test_damaged_parquet(template: dict[str, bytes], which: str, data: st.DataObject) -> None:
    def damage(run: Path) -> None:
        path = any_parquet(run, which)
        content = bytearray(path.read_bytes())
        kind = data.draw(st.sampled_from(["any", "cut", "changed"]))
        if kind == "any":
            content = bytearray(data.draw(st.binary(max_size=200)))
        elif kind == "cut":
            content = content[: data.draw(st.integers(0, len(content)))]
        else:
            for _ in range(data.draw(st.integers(1, 8))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)

    reported(template, damage)


@given(which=WHICH, columns=st.dictionaries(st.sampled_from(["record", *ITEMS[0], "prompt", "expected"]), ARROW))
def test_parquet_of_something_else(template: dict[str, bytes], which: str, columns: dict[str, pa.Array]) -> None:
    reported(template, lambda run: pq.write_table(pa.table(columns), any_parquet(run, which)))


@pytest.mark.slow
@given(data=st.data())
def test_records_of_other_versions(template: dict[str, bytes], data: st.DataObject) -> None:
    def change(run: Path) -> None:
        records = [json.loads(trial.to_json()) for trial in TRIALS]
        for _ in range(data.draw(st.integers(1, 3))):
            _replace_somewhere(data.draw(st.sampled_from(records)), data)
        rows = data.draw(st.sampled_from([records, records[:1], []]))
        pq.write_table(
            pa.table({"record": pa.array([json.dumps(row) for row in rows], pa.string())}), run / "trials.parquet"
        )

    reported(template, change, page=True)


def _replace_somewhere(record: Any, data: st.DataObject) -> None:
    """Put any value in the place of a part of a record, or take the part away."""
    key = data.draw(st.sampled_from(sorted(record)))
    if isinstance(record[key], dict) and record[key] and data.draw(st.booleans()):
        _replace_somewhere(record[key], data)
    elif data.draw(st.booleans()):
        record[key] = data.draw(JSON)
    else:
        del record[key]


@given(name=st.sampled_from(["forgetting/base.json", "plan.json", "sweep.yaml"]), data=st.data())
def test_other_files_of_a_run(template: dict[str, bytes], name: str, data: st.DataObject) -> None:
    def write(run: Path) -> None:
        good = {
            "split": "test",
            "domains": {"mmlu": {"score": 0.5, "standard_error": 0.1, "items": 9}},
            "tasks": {"mmlu": {"counted": "acc"}},
            "notes": ["a note"],
        }
        if data.draw(st.booleans()):
            _replace_somewhere(good, data)
            content = json.dumps(good).encode()
        else:
            content = data.draw(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(content)

    reported(template, write)
