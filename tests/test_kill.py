"""A run that is killed at any time and continued by `--ckpt_path last` ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdzoo.registry import find_config
from kdzoo.teachers.store import Store

TRAINER = {"accelerator": "cpu", "log_every_n_steps": 5}
FEW = {"labelled": 3000, "unlabelled": "drop"}


def recipe(folder: Path) -> str:
    """A teacher that trains in a few seconds."""
    teacher = yaml.safe_load(find_config("teacher_fmnist_small").read_text())
    teacher["model"]["init_args"]["student"] = "cnn_14k"
    teacher["trainer"] = {**TRAINER, "max_epochs": 2}
    teacher["save_every"] = 0.0
    (folder / "kill_teacher.yaml").write_text(yaml.safe_dump(teacher))
    return str(folder / "kill_teacher.yaml")


def student(folder: Path, name: str, data: dict[str, Any], **arguments: Any) -> Path:
    """A method in a few seconds; shuffled, augmented, with accumulated gradients."""
    config = yaml.safe_load(find_config(f"{name}_tiny").read_text())
    config["model"]["init_args"] |= {"student": "cnn_14k", **arguments}
    config["data"]["init_args"] = {**data, "batch_size": 64, "num_workers": 1}
    config["trainer"] = {**TRAINER, "max_epochs": 3, "accumulate_grad_batches": 2}
    config["save_every"] = 0.0  # a checkpoint whenever the metrics are written
    (folder / f"kill_{name}.yaml").write_text(yaml.safe_dump(config))
    return folder / f"kill_{name}.yaml"


def with_a_store(folder: Path) -> Path:
    """`kd` from a recipe through a store."""
    teacher = {"recipe": recipe(folder), "store": "fp32", "views": 3}
    return student(folder, "kd", {"labelled": 1000}, teacher=teacher)


def with_memories(folder: Path) -> Path:
    """`crd`, whose memories are in the checkpoint, from features of a store."""
    teacher = {"recipe": recipe(folder), "store": "fp32", "views": 3, "outputs": ["logits", "pre_logits"]}
    return student(folder, "crd", FEW, teacher=teacher, negatives=16)


def by_itself(folder: Path) -> Path:
    """`ps_kd`, which remembers its own predictions and has no teacher."""
    return student(folder, "ps_kd", FEW)


def with_experts(folder: Path) -> Path:
    """`ftd`, with experts and an average of the set, in a few seconds of each."""
    config = yaml.safe_load(find_config("ftd_tiny").read_text())
    config["model"]["init_args"] |= {"width": 8, "max_start": 1, "evaluation": {"networks": 1, "epochs": 2}}
    config["model"]["init_args"]["experts"] |= {"count": 6, "epochs": 2}
    config["data"]["init_args"] = {"labelled": 1000}
    config["trainer"] = {**TRAINER, "max_epochs": -1, "max_steps": 60}
    config["save_every"] = 0.0
    (folder / "kill_ftd.yaml").write_text(yaml.safe_dump(config))
    return folder / "kill_ftd.yaml"


@pytest.fixture(scope="module", params=[with_a_store, with_experts, with_memories, by_itself])
def config(request, tmp_path_factory) -> Path:
    return request.param(tmp_path_factory.mktemp("configs"))


def start(config: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kdzoo", "fit", "--config", str(config), "--ckpt_path", "last"]
    environment = {**os.environ, "KDZOO_CACHE": str(folder / "cache")}
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(config: Path, folder: Path) -> Path:
    run = start(config, folder)
    _, said = run.communicate(timeout=600)
    assert run.returncode == 0, said[-3000:]
    (result,) = folder.glob("runs/*/*/result.json")  # continued in its own folder
    return result.parent


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> tuple[Path, float]:
    """The run as it should be, and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    begin = time.monotonic()
    return finish(config, folder / "run"), time.monotonic() - begin


def check(run: Path, expected: Path) -> None:
    """The same weights or images, metrics, stores, teachers and experts, to the bit; and nothing left lying about."""
    for file in (expected / "export").glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.equal(load_file(run / "export" / file.name)[name], tensor), name
    first, second = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, expected))
    assert first["global_step"] == second["global_step"]
    assert first["state_dict"].keys() == second["state_dict"].keys()  # with what a method remembers of the samples
    for name, tensor in second["state_dict"].items():
        assert torch.equal(first["state_dict"][name], tensor), name
    for name, tensor in second["optimizer_states"][0]["state"][0].items():
        assert torch.equal(torch.as_tensor(first["optimizer_states"][0]["state"][0][name]), torch.as_tensor(tensor))
    assert (run / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    rows = [line.split(",")[1:3] for line in (run / "metrics.csv").read_text().splitlines()]
    assert len({tuple(row) for row in rows}) == len(rows)
    results = [json.loads((each / "result.json").read_text()) for each in (run, expected)]
    assert without_times(results[0]["metrics"]) == without_times(results[1]["metrics"])
    assert results[0].get("teacher") == results[1].get("teacher")
    caches = [each.parents[2] / "cache" for each in (run, expected)]
    kept = [cached(cache) for cache in caches]
    assert kept[0].keys() == kept[1].keys()
    assert kept[0] == kept[1]
    assert bool(kept[1]) != (expected.parent.name == "ps_kd")  # which has neither a teacher nor experts
    assert not list(run.rglob("*.tmp"))
    assert not list(run.parents[2].glob("cache/*/*.training"))


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "seconds" not in name}


def cached(cache: Path) -> dict[str, bytes]:
    """The rows of the stores and the snapshots of the experts, by their place in the cache, if there are any."""
    stores = [Store.at(file.parent) for file in cache.glob("stores/*/store.json")]
    files = [store.rows(*file).path for store in stores for file in store.found()]
    files += cache.glob("trajectories/*/*.safetensors")
    return {str(file.relative_to(cache)): file.read_bytes() for file in files}


def kill_and_resume(config: Path, folder: Path, times: list[float]) -> Path:
    """Kill one attempt after the other, `times` seconds after its start, and then let it finish."""
    for number, seconds in enumerate(times):
        run = start(config, folder)
        try:
            _, said = run.communicate(timeout=seconds)
            assert run.returncode == 0, said[-3000:]
            break  # it was done before
        except subprocess.TimeoutExpired:
            if number % 2:
                run.kill()  # a teacher's training of its own process lives on
            else:
                os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
    if list(folder.glob("runs/*/*/result.json")):
        return next(folder.glob("runs/*/*/result.json")).parent
    return finish(config, folder)


def test_killed_three_times(config, undisturbed, tmp_path):
    expected, seconds = undisturbed
    moments = random.Random(0)
    times = [seconds * moments.uniform(0.3, 0.7) for _ in range(3)]
    check(kill_and_resume(config, tmp_path / "run", times), expected)


@pytest.mark.bench
@pytest.mark.parametrize("seed", range(10))
def test_thirty_kills(config, undisturbed, tmp_path, seed):
    expected, seconds = undisturbed
    moments = random.Random(seed)
    times = [seconds * moments.uniform(0.2, 0.9) for _ in range(3)]
    check(kill_and_resume(config, tmp_path / "run", times), expected)
