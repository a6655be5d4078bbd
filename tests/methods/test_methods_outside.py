"""Methods in a folder of a user's own: known where they are asked for, and taken along to whoever lacks their files."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from torch import Tensor

from bank_in_process import LocalBank
from command_line import CommandLine
from made_up_trials import made_up_trials
from mergebench_ray import merge, outside_code
from mergebench_ray.bank import compiled_ahead
from mergebench_ray.bank.passes import pass_key
from mergebench_ray.checkpoints import Checkpoint, resolve
from mergebench_ray.commands.merge_checks import checked_merge
from mergebench_ray.config import Recipe, Sweep
from mergebench_ray.errors import InputError
from mergebench_ray.kernels import Pass, Segment
from mergebench_ray.methods import get_method, load_methods, method_names, method_source, registry
from mergebench_ray.runs.opening import locked_run
from mergebench_ray.runs.trial_store import TrialStore
from mergebench_ray.search.checks import check_sweep
from tiny_models import tiny_llama, tiny_specialist

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
TRANSFORMING = '''
"""Half of each task vector, made once, and the mean of nothing in the place of one tensor."""
from dataclasses import dataclass

import torch

from mergebench_ray.methods import Solver, Transform, register
from mergebench_ray.methods.task_arithmetic import TaskArithmeticParameters
from mergebench_ray.methods.spectral import SpectralMethod


class Halves(Transform):
    key = "halves"
    is_shared = False
    dtype = torch.bfloat16

    def of(self, vectors):
        return [0.5 * vector.float() for vector in vectors]


@dataclass(frozen=True)
class Zeros(Solver):
    groups: tuple = (("model.norm.weight",),)
    system_key: str = ""
    key: str = "zeros"

    def solve(self, group, system):
        return [torch.zeros(64)]


@register
class Halved(SpectralMethod):
    name = "halved"
    summary = "half of each"
    source = "a test"
    Parameters = TaskArithmeticParameters

    def transform(self, parameters):
        return Halves()

    def solver(self, parameters, prepared):
        return Zeros()
'''
METHOD = """
from mergebench_ray.methods import register
from mergebench_ray.methods.model_soup import ModelSoup

@register
class Other(ModelSoup):
    name = "{name}"
    summary = "another average"
"""
Models = tuple[Checkpoint, dict[str, Checkpoint]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's example; what is known from it is forgotten after the test."""
    method_names()
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "sign_majority.py").write_text(EXAMPLE)
    return tmp_path / "methods"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base")
    found = {name: resolve(str(tiny_specialist(folder / name, base, seed=i))) for i, name in enumerate("abc")}
    return resolve(str(base)), found


def majority(base: Tensor, specialists: list[Tensor], coefficient: float, agreement: float) -> Tensor:
    """What the page's example is, in its order of operations."""
    vectors = [(one - base).float() for one in specialists]
    merged = base.float()
    for sign in (1, -1):
        count = sum((vector.sign() == sign).float() for vector in vectors)
        total = sum((coefficient * vector * (vector.sign() == sign) for vector in vectors), torch.zeros(()))
        merged = merged + total / count.clamp(min=1.0) * (count >= agreement * len(vectors))
    return merged.bfloat16()


def request(models: Models, **options: Any) -> dict[str, Any]:
    base, specialists = models
    return {"base": str(base.folder), "specialists": {k: str(v.folder) for k, v in specialists.items()}, **options}


def forget(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Be a process that has neither imported a method's file nor heard of it."""
    module = type(get_method(name)).__module__
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(outside_code._known, module)
    monkeypatch.delitem(registry._of_files, module)


def test_the_pages_example_is_a_method_of_its_folder_and_of_no_other_command(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CommandLine(capsys, monkeypatch)
    assert "unknown method 'sign_majority'" in run.refused("methods", "sign_majority")
    assert load_methods(folder) == ["sign_majority"]
    assert method_source("sign_majority") == hashlib.sha256(EXAMPLE.encode()).hexdigest()
    assert method_source("ties") is None
    assert "agreement (default 0.6)" in run("methods", "sign_majority", "--methods-folder", folder).out


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"a.py": "import no_such_module"},
            r"a\.py: cannot be imported \(ModuleNotFoundError: No module named 'no_such",
        ),
        ({"a.py": "def f(:"}, r"a\.py: cannot be imported \(SyntaxError"),
        ({"a.py": "raise SystemExit(3)"}, r"a\.py: cannot be imported \(SystemExit: 3\)"),
        ({"a.py": "\xff"}, r"a\.py: cannot be imported \(UnicodeDecodeError"),
        ({"a.py": "x = 1\n"}, r"a\.py: defines no method: put @register on its class"),
        (
            {"a.py": METHOD.format(name="ties")},
            r"method 'ties' is known already \(mergebench_ray\.methods\.ties\)",
        ),
        ({"a.py": METHOD.format(name="a.b")}, r"a\.py: method 'a\.b': use lower-case letters"),
        ({"a.py": METHOD.format(name="o"), "b.py": METHOD.format(name="o")}, r"b\.py: .*a\.py defines method 'o'"),
        ({"a.txt": "x"}, r"holds no \*\.py"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused_naming_file_and_rule(
    folder: Path, tmp_path: Path, files: dict[str, str] | None, reason: str
) -> None:
    before = method_names()
    for name, text in (files or {}).items():
        (tmp_path / "others").mkdir(exist_ok=True)
        (tmp_path / "others" / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=reason):
        load_methods(tmp_path / "others")
    assert method_names() == before


def test_a_changed_file_takes_the_place_of_the_one_before_and_shares_nothing_with_it(folder: Path) -> None:
    def keys() -> tuple[Any, ...]:
        load_methods(folder)
        kernel = get_method("sign_majority").kernel(get_method("sign_majority").Parameters())
        return pass_key(kernel, torch.bfloat16), kernel, method_source("sign_majority")

    before = keys()
    assert keys() == before
    (folder / "sign_majority.py").write_text(EXAMPLE.replace("+ rise + fall", "+ fall + rise"))
    assert not set(before) & set(keys())


def test_a_method_that_its_folder_has_no_longer_is_known_no_longer(folder: Path) -> None:
    load_methods(folder)
    (folder / "sign_majority.py").unlink()
    (folder / "other.py").write_text(METHOD.format(name="other"))
    assert load_methods(folder) == ["other"]
    assert "sign_majority" not in method_names()


def test_a_sweep_that_names_no_folder_does_not_take_a_method_of_an_earlier_one(folder: Path) -> None:
    load_methods(folder)
    sweep = Sweep.model_validate({"name": "x", "suite": "smollm2-mini", "methods": {"sign_majority": {}}})
    with pytest.raises(InputError, match=rf"sign_majority is known here .* methods_folder: {folder}"):
        check_sweep(sweep)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_functions_transforms_and_solvers_take_their_file_to_who_lacks_it(
    folder: Path, dumps: Callable[[Any], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "halved.py").write_text(TRANSFORMING)
    load_methods(folder)
    chosen, other = get_method("halved"), get_method("sign_majority")
    parameters = chosen.Parameters()
    packed = dumps([other.kernel(other.Parameters()), chosen.transform(parameters), chosen.solver(parameters, None)])
    for file in folder.iterdir():
        file.unlink()
    for name in ("halved", "sign_majority"):
        forget(monkeypatch, name)
    function, transform, solver = pickle.loads(packed)
    assert function.function is not other.merge_block
    assert transform.of([torch.ones(2, dtype=torch.bfloat16)])[0].tolist() == [0.5, 0.5]
    assert "model.norm.weight" in solver
    assert solver.key == "zeros"
    assert pickle.loads(dumps(function)) == function


@pytest.mark.compiler
def test_who_compiles_needs_no_file(folder: Path, no_kernels_yet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    load_methods(folder)
    method = get_method("sign_majority")
    (folder / "sign_majority.py").unlink()
    with compiled_ahead([("sign_majority", {})], ["a", "b"]):
        pass
    monkeypatch.setenv("CXX", "no-such-compiler")
    scalars = {"coefficient": [0.5, 0.5], "needed": [1.2]}
    base, *specialists = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    compiled = Pass(method.kernel(method.Parameters()), 2, scalars, torch.bfloat16, torch.device("cpu"))
    assert compiled.is_compiled
    out = torch.empty_like(base)
    compiled.run(base, [one - base for one in specialists], [Segment(0, len(base), 0, scalars)], out, 1)
    assert torch.equal(out, majority(base, specialists, 0.5, 0.6))


def test_shards_tasks_and_transforms_of_a_cluster_merge_as_the_definition_says(
    ray_cluster: None, folder: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    (folder / "halved.py").write_text(TRANSFORMING)
    base, specialists = models
    for shards in (1, 2):
        out = tmp_path / f"majority {shards}"
        parameters = {"scaling_coef": 0.7, "agreement": 0.6}
        options = request(models, method="sign_majority", parameters=parameters, methods_folder=folder)
        result = merge(out=out, shards=shards, **options)
        merged = resolve(str(out))
        for name in merged.tensors:
            whole = base.read(name)
            expected = majority(whole, [one.read(name) for one in specialists.values()], 0.7, 0.6)
            kept = expected if base.family.is_merged(name) else whole
            assert torch.equal(merged.read(name), kept), name
    assert result.recipe.method_source == method_source("sign_majority")

    merge(out=tmp_path / "halved", shards=2, **request(models, method="halved", methods_folder=folder))
    halved = LocalBank(*models).merge("halved", {})
    assert not halved["model.norm.weight"].any()
    found = resolve(str(tmp_path / "halved"))
    assert [name for name, values in halved.items() if not torch.equal(found.read(name), values.flatten())] == []


def test_a_recipe_is_merged_with_its_methods_file_alone(
    folder: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_methods(folder)
    recipe = LocalBank(*models).bank.recipe("sign_majority", {})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert recipe == Recipe.from_yaml(tmp_path / "recipe.yaml")
    assert recipe.digest != recipe.model_copy(update={"method_source": None}).digest

    def check(**options: Any) -> list[str]:
        whole = {"accept_changes": False, **options}
        return checked_merge(
            tmp_path / "out", None, None, None, None, tmp_path / "recipe.yaml", None, None, **whole
        ).notes

    assert check(methods_folder=folder) == []
    (folder / "sign_majority.py").write_text(f"{EXAMPLE}\n")
    with pytest.raises(InputError, match=r"method sign_majority was made with other code .*/sign_majority\.py"):
        check(methods_folder=folder)
    assert "made with other code" in check(methods_folder=folder, accept_changes=True)[0]
    monkeypatch.delitem(registry._methods, "sign_majority")
    with pytest.raises(InputError, match="'sign_majority' is not one of mergebench_ray's own; give the folder of its"):
        check()


def test_a_search_goes_on_with_the_code_that_began_it(folder: Path, tmp_path: Path) -> None:
    methods = {"sign_majority": {"agreement": {"low": 0.51, "high": 1.0}}}
    content = {"name": "x", "suite": "smollm2-mini", "methods": methods, "methods_folder": str(folder)}
    sweep, file = Sweep.model_validate(content), folder / "sign_majority.py"
    load_methods(folder)
    with locked_run(tmp_path / "run", sweep, resume=False):
        pass
    file.write_text(f"{EXAMPLE}\n# mended before anything was scored\n")
    load_methods(folder)
    with locked_run(tmp_path / "run", sweep, resume=True) as run:
        assert (run.methods_folder / file.name).read_text() == file.read_text()
        TrialStore(run.path).append(made_up_trials()[0])
    file.write_text(EXAMPLE)
    load_methods(folder)
    with (
        pytest.raises(InputError, match=r"sign_majority\.py: method sign_majority has changed since the run was begun"),
        locked_run(tmp_path / "run", sweep, resume=True),
    ):
        pass
    load_methods(tmp_path / "run" / "methods")
    moved = sweep.model_copy(update={"methods_folder": str(tmp_path / "run" / "methods")})
    with locked_run(tmp_path / "run", moved, resume=True):
        pass
