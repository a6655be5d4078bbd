"""Models in object storage, on a server of this machine: what is asked of it, what is fetched, what is refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import obstore
import pytest
from transformers import AutoModelForCausalLM
from werkzeug.serving import make_server

from mergebench_ray.checkpoints import resolve
from mergebench_ray.checkpoints.headers import is_here, resolve_headers
from mergebench_ray.commands.models import resolve_models
from mergebench_ray.config import ModelRef
from mergebench_ray.errors import InputError
from mergebench_ray.object_storage import fetched
from mergebench_ray.object_storage.address import Address
from mergebench_ray.object_storage.copies import copies_folder, make_room
from mergebench_ray.object_storage.fetched import RemoteFile, RemoteFolder, require_room
from mergebench_ray.object_storage.objects import list_folder
from mergebench_ray.object_storage.published import check_new_address
from mergebench_ray.progress import Progress, silent
from object_server import BUCKET, KEYS, ObjectServer, stored
from small_disks import small_disk
from tiny_gguf import tiny_gguf

WEIGHTS = ".safetensors"
FETCH = """
import sys
from mergebench_ray.object_storage.address import Address
from mergebench_ray.object_storage.fetched import RemoteFolder
from mergebench_ray.object_storage.objects import list_folder
for address in map(Address.parse, sys.argv[1:]):
    objects, _ = list_folder(address)
    RemoteFolder(address, tuple(objects.items())).fetch(objects)
print("here", flush=True)
sys.stdin.read()
"""


def folder_at(address: str) -> RemoteFolder:
    objects, _ = list_folder(Address.parse(address))
    return RemoteFolder(Address.parse(address), tuple(objects.items()))


def fetched_copy(address: str, progress: Progress = silent) -> Path:
    found = folder_at(address)
    return found.fetch(found.names, progress)


def test_who_plans_reads_headers_and_no_weights(server: ObjectServer, models: dict[str, Path]) -> None:
    planned = resolve_headers(stored("base"))
    here = resolve(str(models["base"]))
    assert {name: (one.shape, one.dtype) for name, one in planned.tensors.items()} == {
        name: (one.shape, one.dtype) for name, one in here.tensors.items()
    }
    assert planned.config == here.config
    size = (models["base"] / "model.safetensors").stat().st_size
    assert 0 < server.bytes_read(WEIGHTS) <= 1 << 16 < size // 10
    assert not is_here(ModelRef.parse(stored("base")))
    assert resolve_headers(f"{stored('base')}+{stored('adapter')}").tensors.keys() == here.tensors.keys()
    assert server.bytes_read("adapter_model.safetensors") == 0


def test_a_node_fetches_what_it_reads_once_however_many_ask(
    server: ObjectServer, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "_RANGE_BYTES", 100_000)
    here = resolve(f"{models['base']}+{models['adapter']}")
    checkpoint = resolve(f"{stored('base')}+{stored('adapter')}")
    assert server.bytes_read(WEIGHTS) <= 2 << 16
    server.forget()
    sent = pickle.dumps(checkpoint)
    # As on another node, where nothing is yet.
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "another"))
    there = pickle.loads(sent)
    name = "model.layers.0.mlp.down_proj.weight"
    assert there.tensors[name].bytes_to_fetch == (models["base"] / "model.safetensors").stat().st_size
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: there.read(name, start, 64), range(0, 512, 64)))
    assert all(bool((part == here.read(name, 64 * i, 64)).all()) for i, part in enumerate(parts))
    assert there.tensors[name].bytes_to_fetch == 0
    assert there.digest() == here.digest()
    sizes = [models[kind] / file for kind, file in (("base", "model"), ("adapter", "adapter_model"))]
    assert server.bytes_read(WEIGHTS) == sum(file.with_suffix(WEIGHTS).stat().st_size for file in sizes)
    assert there.folder.is_relative_to(tmp_path / "another")
    assert (there.folder / "tokenizer.json").read_bytes() == (models["base"] / "tokenizer.json").read_bytes()
    there.fetch()
    assert is_here(ModelRef.parse(stored("base")))


def test_who_reads_a_part_of_a_model_fetches_the_files_that_hold_it(
    server: ObjectServer, models: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["base"], dtype="auto", trust_remote_code=False)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    found, here = resolve(server.put(tmp_path / "shards", "shards")), resolve(str(tmp_path / "shards"))
    server.forget()
    wanted = here.tensors["model.layers.1.mlp.up_proj.weight"]
    assert bool((found.read(wanted.name) == here.read(wanted.name)).all())
    asked = [request.path for request in server.requests if request.path.endswith(WEIGHTS)]
    assert asked == [f"/{BUCKET}/shards/{wanted.file.name}"]
    assert server.bytes_read(WEIGHTS) == wanted.file.stat().st_size


def test_objects_that_were_replaced_are_refused_and_never_mixed_with_what_was_fetched(
    server: ObjectServer, models: dict[str, Path]
) -> None:
    server.put(models["math"], "changing")
    before, early = resolve(stored("changing")), resolve(stored("changing"))
    assert early.digest() == resolve(str(models["math"])).digest()
    server.put(models["code"], "changing")
    # What was here when the command began is what it goes on with; what was not is refused.
    assert before.digest() == early.digest()
    assert resolve(stored("changing")).digest() == resolve(str(models["code"])).digest()
    shutil.rmtree(before.folder)
    with pytest.raises(InputError, match=rf"{stored('changing')}/\S+: was replaced while it was in use"):
        before.read("model.norm.weight")


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("s3://nowhere/model", "s3://nowhere/model: there is no bucket 'nowhere'"),
        (stored("nothing"), "there are no files; give the folder that holds the checkpoint"),
        (stored("family"), f"there are no files, but {stored('family/small')}; give the folder"),
        (stored("pickled"), f"{stored('pickled')}: only pickled weights"),
        (stored("family/small"), f"{stored('family/small')}/config.json: this file of the checkpoint is missing"),
        (stored("base/model.bin"), "a pickle"),
        (stored("base/model.gguf"), "no such file"),
    ],
)
def test_what_is_not_there_is_one_line(
    server: ObjectServer, models: dict[str, Path], tmp_path: Path, reference: str, problem: str
) -> None:
    for name, file, content in (
        ("pickled", "pytorch_model.bin", b"x"),
        ("family/small", "model.safetensors", (models["base"] / "model.safetensors").read_bytes()),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / file).write_bytes(content)
        server.put(tmp_path / name, name)
    with pytest.raises(InputError) as refused:
        resolve(reference)
    assert problem in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("gcs://bucket/model", "nothing is known of gcs://; did you mean 'gs'?"),
        ("https://host/model", "nothing is known of https://; known: gs, hf, s3"),
        ("s3:/bucket/model", "begin it with s3:// or gs://"),
        ("s3://bucket", "write s3://BUCKET/FOLDER"),
        ("s3://bucket/../model", "no part is empty, '.' or '..'"),
        ("s3://bucket/model?endpoint=x", "takes no options"),
        (f"s3://bucket//model?X-Amz-Signature={KEYS['AWS_SECRET_ACCESS_KEY']}", "takes no options"),
        (f"s3://bucket?X-Amz-Signature={KEYS['AWS_SECRET_ACCESS_KEY']}/model", "takes no options"),
        ("hf://owner/name/folder", "write hf://owner/name or hf://owner/name@revision"),
        (f"s3://AKIA+a+b:{KEYS['AWS_SECRET_ACCESS_KEY']}@bucket/model", "write MODEL or MODEL+ADAPTER"),
        (f"s3://AKIA:{KEYS['AWS_SECRET_ACCESS_KEY']}@bucket/model", "keys and passwords come from the environment"),
    ],
)
def test_an_address_that_is_none_is_one_line_without_what_may_be_a_key(reference: str, problem: str) -> None:
    with pytest.raises(InputError) as refused:
        ModelRef.parse(reference)
    assert problem in str(refused.value)
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)


def test_addresses_are_read_and_printed_as_they_are_written() -> None:
    for text in (
        "s3://bucket/a@b/model",
        "gs://b.c/x+s3://bucket/adapter",
        "hf://owner/name@main",
        "./base+gs://b-c/a",
    ):
        assert str(ModelRef.parse(text)) == text
    assert ModelRef.parse("hf://owner/name@main").hub_id == "owner/name"
    assert ModelRef.parse("s3://bucket/model/") == ModelRef("s3://bucket/model")


def test_no_server_no_keys_and_no_permission_are_one_line_each(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refuse = lambda method, path: method == "GET"
    with pytest.raises(InputError, match="no permission: it cannot be listed") as refused:
        resolve(stored("base"))
    assert not any(key in str(refused.value) for key in KEYS.values())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="S3 is out of reach; check the network, and the endpoint"):
        resolve(stored("base"))
    for name, value, problem in (
        ("AWS_ENDPOINT_URL", "my store", "AWS_ENDPOINT_URL: is no address"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:99999", "AWS_ENDPOINT_URL: is no address"),
        ("AWS_REGION", "of ours", "AWS_REGION: is no region"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(InputError, match=problem):
                resolve(stored("base"))


def test_what_a_server_answers_is_said_without_the_password_of_its_address(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(_environ: object, start: Callable[..., object]) -> list[bytes]:
        start("418 I'm a teapot", [("Content-Length", "0")])
        return []

    listening = make_server("127.0.0.1", 0, strange)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:of-ours@127.0.0.1:{listening.server_port}")
    try:
        with pytest.raises(InputError, match=r"cannot be listed \(418 I'm a teapot\); check the store") as refused:
            resolve(stored("base"))
    finally:
        listening.shutdown()
        listening.server_close()
    assert "of-ours" not in str(refused.value)


def test_an_object_that_stands_for_a_folder_is_none_of_its_files(server: ObjectServer) -> None:
    # The client would take the slash away.
    httpx.put(f"{server.environment['AWS_ENDPOINT_URL']}/{BUCKET}/marked/").raise_for_status()
    with pytest.raises(InputError, match="there are no files; give the folder"):
        resolve(stored("marked"))
    check_new_address(Address.parse(stored("marked")))


def test_copies_in_other_formats_are_not_fetched(server: ObjectServer, models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models["base"], tmp_path / "copies")
    weights = folder / "model.safetensors"
    index = {"weight_map": dict.fromkeys(resolve(str(folder)).tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copyfile(weights, folder / "consolidated.safetensors")
    weights.rename(folder / "model-00001-of-00001.safetensors")
    found = resolve(server.put(folder, "copies"))
    found.fetch()
    assert found.digest() == resolve(str(models["base"])).digest()
    assert found.notes == resolve(str(folder)).notes
    assert server.bytes_read("consolidated.safetensors") == 0


def test_models_that_do_not_all_find_room_are_refused_before_one_is_fetched(
    server: ObjectServer, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (models["base"] / "model.safetensors").stat().st_size
    with small_disk(tmp_path / "disk", 5 * size // 2) as disk:
        monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(disk))
        found = resolve_models(stored("base"), {name: stored(name) for name in ("math", "code")})
        with pytest.raises(InputError, match=r"GB are to be fetched from object storage, and .* are free"):
            found.fetch()
    assert server.bytes_read(WEIGHTS) <= 3 << 16


def test_copies_that_no_process_uses_make_room_the_longest_unused_first(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    for name in ("first", "second", "third", "fourth"):
        obstore.put(server.store, f"copies/{name}/file", tmp_path / "file")
    there = tmp_path / "cache" / "objects"

    def copies() -> list[str]:
        return sorted(copy.name.partition("-")[0] for copy in there.iterdir() if (copy / "file").exists())

    def fetching(*names: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", FETCH, *(stored(f"copies/{name}") for name in names)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        return process

    fetching("first", "second").communicate(timeout=60)
    with fetching("first") as first:
        monkeypatch.setenv("MERGEBENCH_RAY_OBJECTS_MAX_GB", "0.00025")
        with fetching("third") as third:
            assert copies() == ["first", "third"]
            fetching("fourth").communicate(timeout=60)
            assert copies() == ["first", "fourth", "third"]  # those in use stay, and what is needed is fetched
            third.kill()
            assert third.communicate(timeout=60)[1] == "", "a line cuts through what a command shows"
        said: list[str] = []
        here = fetched_copy(stored("copies/second"), lambda _fraction, text: said.append(text))
        assert copies() == ["first", "second"]
        first.communicate(timeout=60)
    removed = [line for line in said if "removed" in line]
    assert len(removed) == 1
    assert re.match(r"0.00 GB of copies of objects that nobody uses were removed from", removed[0])
    assert "third-" in removed[0]
    assert "fourth-" in removed[0]
    shutil.rmtree(here)
    assert fetched_copy(stored("copies/second")) == here
    assert copies() == ["first", "second"]
    monkeypatch.setenv("MERGEBENCH_RAY_OBJECTS_MAX_GB", "much")
    with pytest.raises(InputError, match=r"MERGEBENCH_RAY_OBJECTS_MAX_GB: 'much' is no number of GB"):
        fetched_copy(stored("copies/fourth"))


def test_copies_that_a_command_is_about_to_read_make_no_room_for_others_of_it(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    needed = [stored(f"needed/{name}") for name in ("first", "second", "third")]
    for address in (*needed, stored("needed/other")):
        obstore.put(server.store, f"needed/{Address.parse(address).name}/file", tmp_path / "file")
    command = [sys.executable, "-c", FETCH, *needed[:2], stored("needed/other")]
    subprocess.run(command, input="", capture_output=True, text=True, check=True)
    monkeypatch.setenv("MERGEBENCH_RAY_OBJECTS_MAX_GB", "0.00025")
    said: list[str] = []
    files = [RemoteFile(folder_at(address), "file") for address in needed]
    require_room(files, lambda _fraction, text: said.append(text))
    assert [folder_at(address).is_here("file") for address in needed] == [True, True, False]
    assert not folder_at(stored("needed/other")).is_here("file")
    assert len(said) == 1
    assert ": other-" in said[0]


def test_processes_that_make_room_at_once_take_no_harm_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEBENCH_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MERGEBENCH_RAY_OBJECTS_MAX_GB", "0")

    def copy_and_remove(process: int) -> None:
        for number in range(8):
            made = tmp_path / f"{process}-{number}"
            for part in range(50):
                (made / str(part)).mkdir(parents=True)
                (made / str(part) / "file").write_text("weights")
            made.rename(copies_folder() / made.name)
            make_room(0, silent)

    # A lock is of whoever opened the file, so threads keep each other out as processes do.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(copy_and_remove, range(4)))
    assert list(copies_folder().iterdir()) == []


def test_a_cache_where_no_copy_can_be_made_is_one_line(server: ObjectServer) -> None:
    copy = resolve(stored("base")).folder
    shutil.rmtree(copy)
    copy.write_text("not a folder")
    with pytest.raises(InputError, match=r"cache folder \S+ cannot be made \(File exists\)"):
        resolve(stored("base"))


def test_a_gguf_file_in_storage_is_fetched_and_dequantised(server: ObjectServer, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    file = tiny_gguf(tmp_path / "gguf" / "tiny.gguf")
    server.put(file.parent, "gguf")
    assert resolve(stored("gguf/tiny.gguf")).digest() == resolve(str(file)).digest()
