"""A merge goes to object storage whole or not at all: what is written, what is left of it, what is refused."""

from __future__ import annotations

import _thread
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest

from command_line import CommandLine
from mergebench_ray import interrupts, merge, verify
from mergebench_ray.cache import cache_folder
from mergebench_ray.checkpoints import resolve
from mergebench_ray.commands.merge import _brought_to
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage.address import Address
from mergebench_ray.object_storage.objects import upload
from mergebench_ray.object_storage.published import check_new_address, publish
from mergebench_ray.progress import silent
from object_server import BUCKET, KEYS, ObjectServer, stored

UNDER_WAY = "holds an upload that is under way or was killed"


def merged(out: Path | str, base: object = stored("base")) -> None:
    where = str(base).removesuffix("base")
    specialists = {name: f"{where}{name}" for name in ("math", "code")}
    merge(out=out, method="task_arithmetic", base=str(base), specialists=specialists)


def test_a_merge_from_storage_to_storage_is_byte_for_byte_the_one_on_disk(
    server: ObjectServer, models: dict[str, Path], tmp_path: Path
) -> None:
    merged(stored("merges/new"))
    merged(tmp_path / "of-storage")
    merged(tmp_path / "of-disk", models["base"])
    written = server.content("merges/new")
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "of-storage").iterdir()}
    of_disk = {file.name: file.read_bytes() for file in (tmp_path / "of-disk").iterdir()}
    del of_disk["mergekit_config.yml"]  # which reads no object storage
    # Card and recipe name the models as they were named.
    assert {name for name in of_disk if written[name] != of_disk[name]} == {
        "README.md",
        "recipe.yaml",
        "reproduce.json",
    }
    assert of_disk.keys() == written.keys()
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in written["README.md"].decode()
    assert verify(stored("merges/new")).is_equal
    assert not list((tmp_path / "cache" / "outputs").iterdir())
    with pytest.raises(InputError, match=rf"output {stored('merges/new')} exists already: choose another --out"):
        merged(stored("merges/new"))


@pytest.mark.ray
@pytest.mark.apart
def test_shards_read_and_write_models_in_storage_as_one_process_does_and_fetch_them_once(
    server: ObjectServer, models: dict[str, Path]
) -> None:
    command = [sys.executable, "-m", "mergebench_ray", "merge", "--shards", "2", "--method", "task_arithmetic"]
    command += ["--base", stored("base"), *(f"--specialist={name}={stored(name)}" for name in ("math", "code"))]
    done = subprocess.run([*command, "--out", stored("merges/shards")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size = (models["base"] / "model.safetensors").stat().st_size
    assert size <= server.bytes_read("/base/model.safetensors") <= size + (1 << 16)
    merged(stored("merges/one"))
    assert server.content("merges/shards") == server.content("merges/one")


def test_what_a_killed_upload_leaves_is_no_model(server: ObjectServer, models: dict[str, Path], tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mergebench_ray.object_storage import address, published;"
        "published.publish(Path(sys.argv[1]), address.Address.parse(sys.argv[2]))"
    )
    publisher = subprocess.Popen([sys.executable, "-c", program, str(models["base"]), stored("merges/killed")])
    put: list[str] = []

    def kill(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("model.safetensors"):
            put.append(path)
            publisher.send_signal(signal.SIGKILL)

    server.before = kill
    assert publisher.wait(60) == -signal.SIGKILL
    assert put
    left = server.content("merges/killed")
    assert left
    assert "config.json" not in left
    with pytest.raises(InputError, match=r"config\.json: this file of the checkpoint is missing|no safetensors"):
        resolve(stored("merges/killed"))
    with pytest.raises(InputError, match=UNDER_WAY):
        check_new_address(Address.parse(stored("merges/killed")))


def test_an_upload_that_fails_removes_what_it_wrote(server: ObjectServer, models: dict[str, Path]) -> None:
    server.refuse = lambda method, path: method == "PUT" and path.endswith("config.json")
    with pytest.raises(InputError, match="no permission: it cannot be written"):
        publish(models["base"], Address.parse(stored("merges/failed")))
    assert server.content("merges/failed") == {}


def test_a_merge_that_cannot_be_uploaded_is_kept_and_the_line_says_how_it_gets_there(
    server: ObjectServer, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models["base"].parent)
    run, target = CommandLine(capsys, monkeypatch), stored("merges/late")
    server.refuse = lambda method, path: method == "PUT" and path.endswith("/config.json")
    merging = run("merge", "--method", "model_soup", "--base", "./base", "--specialist", "math=./math", "--out", target)
    assert merging.status == 2
    line = merging.err.splitlines()[-1]
    assert f"error: {target}/config.json: no permission: it cannot be written" in line
    found = re.search(rf"the merge is kept: upload it with mergebench-ray (push (\S+) {target}), then remove", line)
    assert found is not None, line
    assert server.content("merges/late") == {}
    server.forget()
    assert run(*found[1].split()).out == f"written to {target}\n"
    kept = {file.name: file.read_bytes() for file in Path(found[2]).iterdir()}
    assert server.content("merges/late") == kept
    assert {"config.json", "model-00001-of-00001.safetensors", "README.md"} <= kept.keys()
    assert f"{target} exists already: choose another address" in run.refused(*found[1].split())


def test_a_merge_whose_upload_is_interrupted_is_kept_too(
    server: ObjectServer, models: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(".safetensors"):
            _thread.interrupt_main()

    monkeypatch.setattr(interrupts._State, "received", 0)
    monkeypatch.chdir(models["base"].parent)
    run, target = CommandLine(capsys, monkeypatch), stored("merges/stopped")
    server.before = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a worker of the tests has switched off
    try:
        merging = run(
            *("merge", "--method", "model_soup", "--base", "./base", "--specialist", "math=./math", "--out", target)
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert merging.status == 130
    (kept,) = cache_folder("outputs").iterdir()
    upload = f"mergebench-ray push {kept} {target}"
    said = [f"the merge is kept: upload it with {upload}, then remove {kept}", "stopped"]
    assert merging.err.splitlines()[-2:] == said
    assert (kept / "config.json").is_file()
    assert server.content("merges/stopped") == {}


@pytest.mark.parametrize("letter", ["x", "\N{SNOWMAN}"])
def test_a_merge_is_kept_under_a_name_that_files_can_have(
    server: ObjectServer, letter: str, models: dict[str, Path]
) -> None:
    server.refuse = lambda method, path: method == "PUT" and path.endswith("/config.json")
    place = Address.parse(stored("merges/" + letter * 300))
    with pytest.raises(InputError, match="the merge is kept: upload it with"), _brought_to(place, silent) as folder:
        shutil.copytree(models["base"], folder)
    (kept,) = cache_folder("outputs").iterdir()
    assert (kept / "config.json").read_bytes() == (models["base"] / "config.json").read_bytes()


def test_a_file_of_many_parts_is_there_as_a_whole_or_not_at_all(server: ObjectServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(40 << 20))
    target = Address.parse(stored("merges/parts/file"))
    sent: list[int] = []

    def interrupt(num_bytes: int) -> None:
        sent.append(num_bytes)
        if len(sent) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(tmp_path / "file", target, interrupt)
    assert server.content("merges/parts") == {}
    upload(tmp_path / "file", target, sent.append)
    assert server.content("merges/parts") == {"file": (tmp_path / "file").read_bytes()}
    assert max(sent) <= 16 << 20


def test_of_two_that_write_to_one_place_one_is_refused(server: ObjectServer, models: dict[str, Path]) -> None:
    def write(name: str) -> str:
        try:
            publish(models[name], Address.parse(stored("merges/both")))
        except InputError:
            return ""
        return name

    with ThreadPoolExecutor(2) as pool:
        (winner,) = filter(None, pool.map(write, ("math", "code")))
    assert server.content("merges/both") == {file.name: file.read_bytes() for file in models[winner].iterdir()}


@pytest.mark.parametrize("claims", [1, 2])
def test_a_model_that_comes_to_be_where_one_is_pushed_is_refused_in_words_of_push(
    server: ObjectServer,
    models: dict[str, Path],
    claims: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, target = CommandLine(capsys, monkeypatch), stored(f"merges/taken{claims}")
    seen: list[str] = []

    def take(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(".part"):
            seen.append(path)
            if len(seen) == claims:
                obstore.put(server.store, f"merges/taken{claims}/config.json", b"{}")

    server.before = take
    refusal = run.refused("push", str(models["base"]), target)
    assert f"{target} exists already: choose another address or remove it" in refusal
    assert server.content(f"merges/taken{claims}") == {"config.json": b"{}"}


def test_a_place_that_may_not_be_written_is_one_line_before_models_are_touched(server: ObjectServer) -> None:
    server.refuse = lambda method, path: method == "PUT"
    refusal = r"no permission: it cannot be written with the credentials of AWS that are set \(AccessDenied\)"
    with pytest.raises(InputError, match=refusal):
        merged(stored("merges/refused"))
    assert server.bytes_read() == 0


def test_google_cloud_storage_is_read_and_written_too(
    server: ObjectServer, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its lists and objects are those of S3, as far as models go; moto answers for it.
    key = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_BASE_URL", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    publish(models["base"], Address.parse(f"gs://{BUCKET}/merges/google"))
    found = resolve(f"gs://{BUCKET}/merges/google")
    assert found.digest() == resolve(str(models["base"])).digest()
    assert found.folder.parent.name == "objects"
