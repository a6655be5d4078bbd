"""Files: what is opened, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mergebench_ray import files
from mergebench_ray.errors import InputError
from mergebench_ray.files import (
    check_new_file,
    check_new_folder,
    check_replaceable_file,
    check_writable,
    open_regular,
    scratch_folder,
    whole_file,
    whole_folder,
    workplace_of,
)
from small_disks import small_disk


def test_regular_files_and_links_to_them_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as stream:
            assert stream.read() == b"content"


def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="not a regular file"):
            open_regular(path)


def test_missing_files_stay_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


@pytest.fixture
def bad_places(tmp_path: Path) -> dict[str, Path]:
    """Where no output can go, whatever it is."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "x",
        "deep below a file": tmp_path / "file" / "x" / "y",
        "a link to nothing": tmp_path / "dangling",
        "below a link to nothing": tmp_path / "dangling" / "x",
        "a link to itself": tmp_path / "circle",
        "a pipe": tmp_path / "pipe",
        "a device": Path("/dev/null"),
        "where nothing can be made": Path("/proc/x"),
        "too long a name": tmp_path / ("x" * 250),
        "too long a name on the way": tmp_path / ("x" * 256) / "y",
        "too long a path": tmp_path / "/".join(["x" * 200] * 30),
        "a null byte": tmp_path / "a\0b",
    }


def make_folder(path: Path) -> None:
    with whole_folder(path):
        pass


@pytest.mark.parametrize("check", [check_new_file, check_new_folder, make_folder])
def test_output_that_cannot_be_written_is_refused_in_one_line(
    bad_places: dict[str, Path], tmp_path: Path, check: Callable[[Path], None]
) -> None:
    before = sorted(tmp_path.iterdir())
    for name, path in bad_places.items():
        with pytest.raises(InputError, match="output") as caught:
            check(path)
        assert "\n" not in str(caught.value), name
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_a_place_that_is_tried_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    check_new_folder(tmp_path / "link")
    check_new_folder(tmp_path / "a" / "b" / "c")
    check_new_file(tmp_path / "a" / "b" / "c")
    check_writable(tmp_path / "a" / "b")
    check_replaceable_file(tmp_path / "a" / "b", "--csv")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["empty", "link"]


def test_a_link_to_an_empty_folder_leads_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "file").read_text() == "content"


def test_a_folder_that_is_replaced_stays_whole_until_then(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("first", "second"):
        with whole_folder(out, replace=True) as folder:
            (folder / name).write_text("")
            assert [file.name for file in out.glob("*")] == (["first"] if name == "second" else [])
    with pytest.raises(KeyError), whole_folder(out, replace=True):
        raise KeyError
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["out", "out/second"]


def test_what_is_made_has_the_rights_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "folder"):
            pass
        with whole_file(tmp_path / "file"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_new_file_never_replaces_what_came_meanwhile(tmp_path: Path) -> None:
    def write() -> None:
        with whole_file(tmp_path / "file", new=True):
            (tmp_path / "file").write_text("theirs")

    with pytest.raises(InputError, match="exists by now"):
        write()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "theirs"


def test_an_error_leaves_no_folder_that_was_made_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_folder(tmp_path / "a" / "b" / "out"):
        raise KeyError
    with pytest.raises(KeyError), whole_file(tmp_path / "a" / "b" / "out"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
from mergebench_ray import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as temporary:
    if temporary.is_dir():
        (temporary / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["whole_folder", "whole_file"])
def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_live_one_writes_is_not(
    tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.20250101").write_text("the user's")
    kept = sorted(tmp_path.iterdir())
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, kind, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (temporary,) = set(tmp_path.iterdir()) - set(kept)
        with getattr(files, kind)(tmp_path / "out"):
            assert temporary.exists()
        remove(out)
        process.kill()
    assert temporary.exists()
    with getattr(files, kind)(out):
        assert not temporary.exists()
    assert sorted(tmp_path.iterdir()) == sorted([*kept, out])


def remove(path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink()


def test_what_a_killed_writer_left_counts_neither_as_content_nor_against_the_room(tmp_path: Path) -> None:
    (tmp_path / ".out.0123abcd.part").mkdir()
    check_new_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    with small_disk(tmp_path / "disk", 1 << 20) as folder:
        yield folder


def test_after_a_full_disk_the_same_place_works_again(disk: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(900_000))
    for make in (whole_folder, whole_file):
        out = disk / "a" / make.__name__
        with pytest.raises(InputError, match="no space left"), make(out) as temporary:
            (temporary / "x" if temporary.is_dir() else temporary).write_bytes(bytes(500_000))
        assert [file.name for file in disk.iterdir()] == ["ballast"]
    with pytest.raises(InputError, match=r"takes 0\.00 GB"):
        check_new_folder(disk / "out", num_bytes=500_000)
    ballast.unlink()
    check_new_folder(disk / "out", num_bytes=500_000)
    with whole_folder(disk / "out") as temporary:
        (temporary / "x").write_bytes(bytes(500_000))
    assert (disk / "out" / "x").stat().st_size == 500_000


def test_a_mounted_empty_folder_is_filled_in_its_place(disk: Path) -> None:
    check_new_folder(disk)
    with pytest.raises(KeyError), whole_folder(disk):
        raise KeyError
    assert list(disk.iterdir()) == []
    with whole_folder(disk) as temporary:
        (temporary / "x").write_text("content")
    assert [file.name for file in disk.iterdir()] == ["x"]


def test_a_disk_that_is_mounted_to_be_read_is_refused(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for check in (check_new_file, check_new_folder, check_writable):
        with pytest.raises(InputError, match="Read-only file system"):
            check(disk / "out")


def test_where_a_folder_is_prepared_is_known_before(disk: Path, tmp_path: Path) -> None:
    assert workplace_of(tmp_path / "some" / "out") == tmp_path
    assert workplace_of(disk) == disk, "what is mounted is filled in its place"
    (tmp_path / "link").symlink_to(disk)
    assert workplace_of(tmp_path / "link" / "out") == disk
    (disk / "empty").mkdir()
    (tmp_path / "leads").symlink_to(disk / "empty")
    assert workplace_of(tmp_path / "leads") == disk, "not beside the link"


def test_a_scratch_folder_leaves_nothing_and_takes_away_what_a_killed_one_left(tmp_path: Path) -> None:
    abandoned = tmp_path / "scratch" / ".model.0123abcd.part"
    (abandoned / "half").mkdir(parents=True)
    with scratch_folder(tmp_path / "scratch" / "model") as one:
        assert not abandoned.exists()
        with scratch_folder(tmp_path / "scratch" / "model") as other:
            assert one.is_dir()
            assert other.is_dir()
        assert list(one.parent.iterdir()) == [one]
    assert list((tmp_path / "scratch").iterdir()) == []
