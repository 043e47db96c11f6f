"""Two processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from ranks import methods  # the script beside this one

from kdzoo import registry
from kdzoo.card import read_card
from kdzoo.cli import main
from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.export.image import export_image_network
from kdzoo.students.build import build
from kdzoo.teachers import store
from kdzoo.teachers.store import Store

SCRIPT = Path(__file__).with_name("ranks.py")
CONFIGS = methods()
METHODS = list(CONFIGS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of one process and of two, and their caches."""
    folder = tmp_path_factory.mktemp("ranks")
    export_image_network(build("cnn_14k", FashionMNIST().spec), FashionMNIST().spec, folder / "teacher")
    found = {}
    for world in (1, 2):
        launcher = [] if world == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        cache = folder / f"cache{world}"
        done = subprocess.run(
            [sys.executable, *launcher, str(SCRIPT), str(folder / f"{world}.json"), str(folder / "teacher")],
            env={**os.environ, "KDZOO_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[world] = json.loads((folder / f"{world}.json").read_text()), cache
    return found


@pytest.mark.parametrize("name", [*METHODS, "kd with a store"])
def test_two_processes_do_what_one_does(runs, name):
    (one, _), (two, _) = runs[1], runs[2]
    np.testing.assert_allclose(two[name]["losses"], one[name]["losses"], rtol=1e-5)
    assert len(one[name]["losses"]) == 8
    first, second = two[name]["weights"]
    assert first == second  # the ranks agree to the bit
    card = read_card(registry.find(registry.METHODS, name)).card if name in CONFIGS else None
    distils_data = card is not None and card.task in ("dataset distillation", "graph condensation")
    assert bool(one[name]["scores"]) != distils_data  # which is not judged inside a fit
    for score, value in one[name]["scores"].items():
        assert two[name]["scores"][score] == pytest.approx(value, rel=1e-4), score


@pytest.mark.parametrize("name", ["crd", "ps_kd"])
def test_a_memory_of_samples_is_the_same_on_both_ranks(runs, name):
    first, second = runs[2][0][name]["memories"]
    (alone,) = runs[1][0][name]["memories"]
    assert first == second
    assert len(first) == {"crd": 2, "ps_kd": 1}[name]
    for memory, expected in zip(first, alone, strict=True):
        np.testing.assert_allclose(memory, expected, rtol=1e-3, atol=1e-5)
        assert np.ptp(memory, axis=0).min() > 0  # something was written


def test_the_ranks_fill_the_store_together_each_row_once(runs, monkeypatch):
    monkeypatch.setattr(store, "BLOCK", 64)  # as in the script
    stores = {
        world: Store.at(next(path for path in (cache / "stores").iterdir() if path.is_dir()))
        for world, (_, cache) in runs.items()
    }
    size = sum(stores[2].rows(*file).path.stat().st_size for file in stores[2].found())
    written = runs[2][0]["kd with a store"]["written"]
    assert sum(written) == size
    assert min(written) > 0
    for file in stores[1].found():
        np.testing.assert_allclose(stores[2].rows(*file).open(), stores[1].rows(*file).open(), rtol=1e-5, atol=1e-6)


def test_the_command_line_on_two_processes(tmp_path):
    """From an empty cache to the export: the recipe is trained once, by one process, and the first rank tells of it."""
    teacher = yaml.safe_load(registry.find_config("teacher_fmnist_small").read_text())
    teacher["model"]["init_args"]["student"] = "cnn_14k"
    teacher["trainer"] = {"accelerator": "cpu", "max_epochs": -1, "max_steps": 2}
    (tmp_path / "ranks_teacher.yaml").write_text(yaml.safe_dump(teacher))
    source = f"{{recipe: {tmp_path / 'ranks_teacher.yaml'}, store: fp16, views: 1}}"
    command = ["-m", "kdzoo", "fit", "--config", "kd_tiny", "--model.teacher", source, "--trainer.max_steps", "3"]
    ddp = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(
        [sys.executable, *command, *ddp],
        env={**os.environ, "KDZOO_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        "is not cached: training it first",
        "student   cnn_14k",
        "result    test accuracy",
        "export    runs/kd/",
    ):
        assert done.stdout.count(words) == 1, done.stdout
    (run,) = (tmp_path / "runs" / "kd").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 3
    assert (run / "export" / "model.safetensors").is_file()
    assert "Confusion" in (run / "report.html").read_text()
    assert len(list((tmp_path / "cache" / "teachers").glob("*/config.json"))) == 1


def test_ranks_of_another_launcher_need_a_folder(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", "kd_tiny"])
    assert exit.value.code == 2
    assert "give all of them the same --run_dir" in capsys.readouterr().err
