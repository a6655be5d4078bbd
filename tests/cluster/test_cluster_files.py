"""Files for real clusters, without any: what their own tools and schemas say of them, and that all ask for a token."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
LAUNCHER = ["aws.yaml", "gcp.yaml", "on-premises.yaml"]
KUBERAY = ["kuberay-cluster.yaml", "kuberay-job.yaml"]
RAY_COMMAND = re.compile(
    r"\bray ((?:start|stop|status|health-check|get-auth-token|symmetric-run|up|down|exec|attach)\b.*)"
)
TOKEN = {"~/.ray/auth_token": "~/.ray/auth_token"}


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def tool(name: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a linter that is installed beside this Python."""
    command = [str(Path(sys.executable).parent / name), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def scripts() -> Iterator[tuple[str, str]]:
    """Everything that a shell runs, and where it stands."""
    yield "slurm.sh", (FOLDER / "slurm.sh").read_text(encoding="utf-8")
    for part in ("setup", "run"):
        yield f"skypilot.yaml {part}", f"#!/bin/bash\n{read('skypilot.yaml')[part]}"
    yield "kuberay-job.yaml", f"#!/bin/bash\n{read('kuberay-job.yaml')['spec']['entrypoint']}"
    for name in LAUNCHER:
        written = read(name)
        commands = [line for key in sorted(written) if key.endswith("_commands") for line in written[key]]
        yield name, "#!/bin/bash\n" + "\n".join(commands)


def test_the_page_names_every_file() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in FOLDER.iterdir() if f"`{file.name}`" not in page and file.name != "README.md"] == []


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_launcher_takes_its_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    written = read(name)
    validate_config(prepare_config(written))
    assert TOKEN.items() <= written["file_mounts"].items()
    assert "chmod 600 ~/.ray/auth_token" in written["setup_commands"]
    for kind in ("head", "worker"):
        *before, start = written[f"{kind}_start_ray_commands"]
        assert "RAY_AUTH_MODE=token" in start
        assert [command.rpartition("/")[2] for command in before] == ["ray stop"]


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_on_clouds_engines_are_on_spot_machines_and_the_bank_is_not(name: str) -> None:
    kinds = read(name)["available_node_types"]
    spot = {
        kind: "spot" in json.dumps(one["node_config"]) or "preempt" in json.dumps(one) for kind, one in kinds.items()
    }
    assert spot == {"bank": False, "engines": True}
    assert {kind: one["labels"]["ray.io/market-type"] == "spot" for kind, one in kinds.items()} == spot


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_gives_every_pod_the_token_of_one_secret_and_keeps_what_the_head_knows(name: str) -> None:
    written = read(name)
    assert (written["apiVersion"], written["kind"]) == ("ray.io/v1", "RayJob" if "job" in name else "RayCluster")
    spec = written["spec"].get("rayClusterSpec", written["spec"])
    assert set(spec) == {"rayVersion", "authOptions", "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs"}
    assert spec["authOptions"] == {"mode": "token", "secretName": "mergebench-ray-token"}
    redis = {one["kind"]: one for one in yaml.safe_load_all((FOLDER / "kuberay-redis.yaml").read_text())}
    password = {"secretKeyRef": {"name": "mergebench-ray-redis", "key": "password"}}
    assert spec["gcsFaultToleranceOptions"] == {
        "redisAddress": f"{redis['Service']['metadata']['name']}:{redis['Service']['spec']['ports'][0]['port']}",
        "redisPassword": {"valueFrom": password},
    }
    pod = redis["Deployment"]["spec"]["template"]
    assert pod["metadata"]["labels"].items() >= redis["Service"]["spec"]["selector"].items()
    assert pod["spec"]["containers"][0]["env"] == [{"name": "REDIS_PASSWORD", "valueFrom": password}]
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "secret generic mergebench-ray-token --from-literal=auth_token=" in page
    assert "secret generic mergebench-ray-redis --from-literal=password=" in page


@pytest.mark.parametrize("name", KUBERAY)
def test_on_kubernetes_engines_are_on_spot_nodes_and_all_pods_are_of_one_image_and_disk(name: str) -> None:
    spec = read(name)["spec"]
    spec = spec.get("rayClusterSpec", spec)
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert set(head) == {"rayStartParams", "labels", "template"}
    assert set(workers) == {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "labels",
        "template",
    }
    assert [one["labels"]["ray.io/market-type"] for one in (head, workers)] == ["on-demand", "spot"]
    pods = [one["template"]["spec"] for one in (head, workers)]
    assert ["spot" in json.dumps(pod["nodeSelector"]) for pod in pods] == [False, True]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len({json.dumps([one["image"], one["volumeMounts"], one["env"]]) for one in containers}) == 1
    assert ["nvidia.com/gpu" in one["resources"]["limits"] for one in containers] == [False, True]
    assert all(one["resources"]["limits"] == one["resources"]["requests"] for one in containers)
    assert pods[0]["volumes"] == pods[1]["volumes"]


def test_versions_are_those_that_are_tested_here() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ray = re.search(r"^ray==(.*)$", (ROOT / "constraints-cpu.txt").read_text(), re.MULTILINE)
    assert ray is not None
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"/mergebench-ray:([\d.]+\d)", text)) <= {version}, file
        named = re.findall(r"rayproject/ray:([\d.]+\d)|rayVersion: \"(.*)\"|ray\[default,tune\]==([\d.]+\d)", text)
        assert {one for found in named for one in found if one} <= {ray[1]}, file


@pytest.mark.parametrize(("name", "text"), scripts(), ids=lambda one: one if len(one) < 30 else "")
def test_scripts_are_sound(name: str, text: str) -> None:
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=True).stderr == ""
    # Ray and SkyPilot set variables that ShellCheck does not know, and files are there that are not here.
    found = tool("shellcheck", "--exclude=SC1090,SC1091,SC2016,SC2046,SC2086,SC2154", "-", stdin=text)
    assert found.returncode == 0, found.stdout


def test_the_image_is_made_as_linters_want_it_from_the_wheel_that_the_page_makes() -> None:
    found = tool("hadolint", str(FOLDER / "Dockerfile"))
    assert found.returncode == 0, found.stdout
    sources = re.findall(r"^COPY (\S+) ", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert sources == ["dist/mergebench_ray-*.whl"]
    assert "pip wheel --no-deps --wheel-dir dist ." in (FOLDER / "README.md").read_text()


def test_skypilot_is_told_what_it_knows() -> None:
    written = read("skypilot.yaml")
    known = ["name", "num_nodes", "resources", "workdir", "file_mounts", "envs", "secrets", "setup", "run"]
    assert set(written) <= set(known)
    assert set(written["resources"]) <= {"accelerators", "disk_size", "use_spot", "cpus", "memory", "image_id", "infra"}
    assert (written["envs"]["RAY_AUTH_MODE"], written["secrets"]) == ("token", {"RAY_AUTH_TOKEN": None})
    assert (ROOT / written["envs"]["SWEEP"]).is_file()


def test_rays_own_commands_are_called_with_options_that_they_have() -> None:
    from ray.scripts import scripts as ray_scripts
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    text = "\n".join(file.read_text(encoding="utf-8") for file in FOLDER.iterdir()).replace("\\\n", " ")
    found = [line for line in RAY_COMMAND.findall(re.sub(r"\n +--", " --", text)) if "`" not in line]
    assert len(found) > 15
    options = {
        name: {one for param in command.params for one in param.opts}
        for name, command in ray_scripts.cli.commands.items()
    }
    for line in found:
        name, *arguments = shlex.split(re.sub(r"[0-9]?>.*|[;|&].*|\).*", "", line), comments=True, posix=False)
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        if name == "symmetric-run":
            curate_and_validate_ray_start_args(own)
        given = {one.partition("=")[0] for one in own if one.startswith("--")}
        also = options["start"] if name == "symmetric-run" else set()
        assert given <= options[name] | also, line
