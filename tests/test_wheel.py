"""What users without the repository have: a wheel that holds all of the package, and runs from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
# As pip and `python -m build` do, the wheel from the source distribution alone.
BUILD = """
import os, sys, tarfile
from setuptools import build_meta
out = sys.argv[1]
source = build_meta.build_sdist(out)
with tarfile.open(os.path.join(out, source)) as archive:
    archive.extractall(out, filter="data")
os.chdir(os.path.join(out, source.removesuffix(".tar.gz")))
build_meta.build_wheel(out)
"""
COMMANDS = """
import sys
import mergebench_ray
from mergebench_ray.cli import main
from mergebench_ray.search.checks import read_sweep
print(mergebench_ray.__file__)
print(read_sweep("quickstart").name)
for command in ["--version"], ["methods", "ties"], ["suites"]:
    sys.argv = ["mergebench-ray", *command]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, command
"""


def kept_files() -> list[str]:
    """Paths of all files that the repository has, or would have after `git add`."""
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source distribution and wheel, made of a copy: what earlier builds left would be taken in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in kept_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=source, capture_output=True, check=True)
    return out


def test_the_wheel_holds_the_package_file_for_file_and_runs_from_any_folder(built: Path, tmp_path: Path) -> None:
    package = {name for name in kept_files() if name.startswith("mergebench_ray/") and not (ROOT / name).is_symlink()}
    package |= {f"mergebench_ray/{name}" for name in kept_files() if name.startswith("sweeps/")}
    (file,) = built.glob("*.whl")
    with ZipFile(file) as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == package
        wheel.extractall(tmp_path / "installed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, sweep, version, *rest = done.stdout.splitlines()
    assert where == str(tmp_path / "installed" / "mergebench_ray" / "__init__.py")
    assert sweep == "quickstart"
    assert version == f"mergebench-ray {file.name.split('-')[1]}"
    assert rest[0].startswith("ties: ")
    assert "smollm2-mini" in done.stdout
    assert list(elsewhere.iterdir()) == []


def test_the_source_distribution_has_no_half_of_the_tests(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2].partition("/")[0] for name in archive.getnames()}
    made = {"", "PKG-INFO", "setup.cfg", "mergebench_ray.egg-info"}
    assert names - made == {
        *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "constraints-cpu.txt"),
        *("mergebench_ray", "pyproject.toml"),
    }
