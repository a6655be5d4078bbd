from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from made_up_trials import made_up_trials
from mergebench_ray.errors import InputError
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.runs.trials import Trial, read_trials

ITEMS = [
    {"domain": "math", "task": "mini_math", "item": "m1", "prompt_digest": "aa", "answer": "7", "score": 1.0},
    {"domain": "math", "task": "mini_math", "item": "m2", "prompt_digest": "bb", "answer": "", "score": None},
]


def _filled(folder: Path, trials: list[Trial]) -> TrialStore:
    store = TrialStore(folder)
    for trial in trials:
        store.append(trial)
    return store


def test_trials_survive_closing_and_opening_without_loss(tmp_path: Path) -> None:
    trials = made_up_trials()
    _filled(tmp_path, trials)
    assert TrialStore(tmp_path).trials() == trials
    assert read_trials(tmp_path) == trials


def test_every_trial_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    store = TrialStore(tmp_path)
    for count, trial in enumerate(made_up_trials(3), start=1):
        store.append(trial, ITEMS)
        assert len(read_trials(tmp_path)) == count
        # They are kept as by versions that knew no clusters: then each prompt is one.
        assert store.items(trial).to_pylist() == [{**row, "cluster": row["prompt_digest"]} for row in ITEMS]
        assert (tmp_path / "items" / f"{trial.digest}-{trial.split}.parquet").is_file()


def test_table_has_readable_flat_columns(tmp_path: Path) -> None:
    trials = made_up_trials()
    _filled(tmp_path, trials)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    ties = next(index for index, trial in enumerate(trials) if trial.method == "ties")
    assert rows[ties]["score.math"] == trials[ties].domains["math"].score
    assert rows[ties]["standard_error.math"] == trials[ties].domains["math"].standard_error
    assert rows[ties]["coefficient.math"] == trials[ties].coefficients["math"]
    assert rows[ties]["parameter.density"] == trials[ties].parameters["density"]
    assert rows[ties]["version.vllm"] == "0.32.0"
    assert rows[ties]["finished"] == trials[ties].finished
    assert rows[0]["parameter.density"] is None
    assert not [name for name in rows[0] if name.startswith("parameter.scaling_coef")]


def test_coefficients_per_layer_group_are_columns_of_their_own(tmp_path: Path) -> None:
    trial = replace(made_up_trials(1)[8], parameters={"scaling_coef": {"math": [0.1, 0.2]}, "k": 2})
    store = _filled(tmp_path, [trial])
    row = store.table().to_pylist()[0]
    assert (row["coefficient.math.0"], row["coefficient.math.1"], row["parameter.k"]) == (0.1, 0.2, 2)
    assert read_trials(tmp_path) == [trial]


def test_methods_may_give_one_parameter_values_of_different_types(tmp_path: Path) -> None:
    first, second, third = made_up_trials(3)[8:11]
    values = [replace(first, parameters={"p": 1}), replace(second, parameters={"p": "sum"})]
    store = _filled(tmp_path, [*values, replace(third, parameters={})])
    assert store.table()["parameter.p"].to_pylist() == ["1", "sum", None]
    assert [trial.parameters for trial in read_trials(tmp_path)] == [{"p": 1}, {"p": "sum"}, {}]


def test_a_scored_model_is_found_by_digest_items_and_split(tmp_path: Path) -> None:
    trials = made_up_trials()
    store = _filled(tmp_path, trials)
    wanted = trials[10]
    assert store.find(wanted.digest, wanted.items_digest, "validation") == wanted
    assert store.find(wanted.digest, "other items", "validation") is None
    assert store.find("other model", wanted.items_digest, "validation") is None


def test_a_trial_is_replaced_in_its_place_and_never_stored_twice(tmp_path: Path) -> None:
    trials = made_up_trials(2)
    store = _filled(tmp_path, trials)
    with pytest.raises(ValueError, match="stored already"):
        store.append(trials[1])
    store.replace(replace(trials[1], normalised_average=1.0))
    assert [trial.normalised_average for trial in read_trials(tmp_path)][1] == 1.0
    assert len(read_trials(tmp_path)) == len(trials)


def test_a_process_killed_while_writing_loses_only_the_unfinished_trial(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
import pyarrow.parquet as pq
from made_up_trials import made_up_trials
from mergebench_ray.runs.trial_store import TrialStore
store = TrialStore(Path({str(tmp_path)!r}))
first, second = made_up_trials(0)[:2]
store.append(first)
write = pq.write_table
def killed_half_way(table, path):
    write(table, path)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
pq.write_table = killed_half_way
store.append(second)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".trials.parquet.*"))) == 1
    assert TrialStore(tmp_path).trials() == made_up_trials(0)[:1]
    assert not list(tmp_path.glob(".trials.parquet.*"))


def test_a_full_disk_leaves_the_trials_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made_up_trials(0)[:2]
    store = _filled(tmp_path, [first])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match="no space left"):
        store.append(second)
    assert store.trials() == read_trials(tmp_path) == [first]
    assert [file.name for file in tmp_path.iterdir()] == ["trials.parquet"]


@pytest.mark.parametrize("content", [b"", b"not parquet", "half"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes | str) -> None:
    _filled(tmp_path, made_up_trials(2))
    path = tmp_path / "trials.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if isinstance(content, str) else content)
    with pytest.raises(InputError, match=r"trials\.parquet: damaged.*restore") as caught:
        TrialStore(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"other": [1]}), tmp_path / "trials.parquet")
    with pytest.raises(InputError, match="damaged"):
        read_trials(tmp_path)


def test_a_folder_without_trials_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; give the folder of a run"):
        read_trials(tmp_path)


def test_what_was_counted_is_kept_beside_each_score_and_older_runs_without_it_open(tmp_path: Path) -> None:
    old, new = made_up_trials(0)[:2]
    counted = {"harmbench": "1 - keyword_refusal", "xstest": "keyword_refusal_accuracy", "other": "1 - keyword_refusal"}
    safety = replace(old.domains["safety"], counted=counted)
    labelled = replace(new, domains={**new.domains, "safety": safety})
    store = _filled(tmp_path, [old, labelled])
    assert read_trials(tmp_path)[1] == labelled
    assert store.table()["metric.safety"].to_pylist() == [None, "1 - keyword_refusal, keyword_refusal_accuracy"]
    written = json.loads(old.to_json())
    for result in written["domains"].values():
        del result["counted"]
    assert Trial.from_json(json.dumps(written)) == old


def test_a_hyper_parameter_with_the_values_of_the_coefficients_keeps_its_columns(tmp_path: Path) -> None:
    trial = made_up_trials(1)[8]
    parameters = {"scaling_coef": dict(trial.coefficients), "mu": dict(trial.coefficients)}
    trial = replace(trial, parameters=parameters)
    names = _filled(tmp_path, [trial]).table().column_names
    assert [name for name in names if name.startswith("parameter.")] == [
        f"parameter.mu.{d}" for d in trial.coefficients
    ]
    assert [name for name in names if name.startswith("coefficient.")] == [
        f"coefficient.{d}" for d in trial.coefficients
    ]
    assert read_trials(tmp_path) == [trial]


def test_every_leaf_of_the_parameters_has_a_column_of_its_own(tmp_path: Path) -> None:
    parameters = {"p": {"a.0": 1, "a": [2, {}]}, "empty": [], "large": 1 << 70, "scaling_coef": {"a.b": 0.1, "a": 0.2}}
    trial = replace(made_up_trials(1)[8], parameters=parameters)
    row = _filled(tmp_path, [trial]).table().to_pylist()[0]
    found = {name: value for name, value in row.items() if name.startswith(("parameter.", "coefficient."))}
    assert found == {
        'coefficient."a.b"': 0.1,
        "coefficient.a": 0.2,
        'parameter.p."a.0"': 1,
        "parameter.p.a.0": 2,
        "parameter.p.a.1": "{}",
        "parameter.empty": "[]",
        "parameter.large": str(1 << 70),
    }
    assert read_trials(tmp_path) == [trial]


READ_ON = """
import sys
from pathlib import Path
from mergebench_ray.runs.items import read_items
from mergebench_ray.runs.trials import read_trials
seen = 0
while seen < int(sys.argv[2]):
    trials = read_trials(Path(sys.argv[1]))
    assert len(trials) >= seen
    seen = len(trials)
    assert len(read_items(Path(sys.argv[1]), trials[-1])) == 2
    print(seen, flush=True)
"""


@pytest.mark.slow
def test_a_reader_beside_a_running_search_always_sees_whole_files(tmp_path: Path) -> None:
    trials = made_up_trials(100, test=False)
    store = TrialStore(tmp_path)
    store.append(trials[0], ITEMS)
    reader = subprocess.Popen(
        [sys.executable, "-c", READ_ON, str(tmp_path), str(len(trials))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "1\n"
    for trial in trials[1:]:
        store.append(trial, ITEMS)
    out, _ = reader.communicate(timeout=300)
    lengths = out.split()
    assert (reader.returncode, lengths[-1]) == (0, str(len(trials))), out[-2000:]
    assert len(set(lengths)) > 2


def test_a_run_that_stored_coefficients_thrice_reads_as_before() -> None:
    trial = next(trial for trial in made_up_trials() if trial.role == "candidate")
    old = {
        **json.loads(trial.to_json()),
        "coefficients": dict(trial.coefficients),
        "optuna_parameters": {"method": "x"},
    }
    assert Trial.from_json(json.dumps(old)) == trial
    assert trial.coefficients == trial.parameters["scaling_coef"]
