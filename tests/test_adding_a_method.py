"""The method that docs/adding-a-method.md shows is one file, and works as the page says."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bank_in_process import LocalBank
from tiny_models import tiny_llama, tiny_specialist

from mergebench_ray.checkpoints import is_merged, resolve
from mergebench_ray.methods import get_method, registry

PAGE = Path(__file__).parent.parent / "docs" / "adding-a-method.md"


@pytest.fixture
def magmax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's code as a module; its name."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "magmax_of_the_page.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("magmax_of_the_page")
    yield "magmax"
    registry._methods.pop("magmax")
    sys.modules.pop("magmax_of_the_page")


def test_the_pages_method_merges_as_its_definition_says(magmax: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "base")
    base = resolve(str(folder))
    specialists = {
        name: resolve(str(tiny_specialist(tmp_path / name, folder, seed=seed)))
        for seed, name in enumerate(["coding", "math", "safety"])
    }
    results = [LocalBank(base, specialists, shards=shards).merge(magmax, {"scaling_coef": 0.5}) for shards in (1, 3)]
    for name, merged in results[0].items():
        origin = base.read(name)
        vectors = torch.stack([specialists[k].read(name) - origin for k in sorted(specialists)]).float() * 0.5
        largest = vectors.gather(0, vectors.abs().max(0, keepdim=True).indices)[0]
        assert torch.equal(merged.flatten(), (origin.float() + largest).bfloat16())
        assert torch.equal(merged, results[1][name])
    assert set(results[0]) == {name for name in base.tensors if is_merged(name)}


def test_the_pages_method_is_found_by_name_with_its_ranges(magmax: str) -> None:
    assert get_method(magmax).Parameters().model_dump() == {"scaling_coef": 0.5}
