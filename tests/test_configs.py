"""A config that is not run by a test does not exist."""

from dataclasses import replace

import pytest
import yaml
from lightning import Trainer, seed_everything

from kdzoo import registry
from kdzoo.cli import main
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.teachers.sources import untrained_teachers
from kdzoo.testing import make_data, make_method, no_network

CONFIGS = registry.config_files()
RUNNABLE = sorted(stem for stem in CONFIGS if not stem.endswith("_bench"))
BENCHES = sorted(stem for stem in CONFIGS if stem.endswith("_bench"))


def settings(stem: str) -> dict:
    return yaml.safe_load(CONFIGS[stem].read_text())


def smaller(spec: dict) -> dict:
    """Segmentation networks take images of any size, and half a minute for a step on large ones."""
    if spec.get("modality") != "segmentation":
        return spec
    side = min(96, *spec["image_size"])
    shapes = {"image": [spec["channels"], side, side], "mask": [side, side]}
    keys = {key: {**entry, "shape": shapes.get(key, entry["shape"])} for key, entry in spec["keys"].items()}
    return {**spec, "image_size": [side, side], "keys": keys}


@pytest.mark.parametrize("stem", RUNNABLE)
def test_builds_and_takes_a_step(stem, tmp_path):
    """Tiny and paper-size alike, on random data of the config's own spec."""
    seed_everything(0, verbose=False)
    config = settings(stem)
    with no_network(), untrained_teachers():
        method, spec = make_method(config), smaller(make_data(config).spec)
        if hasattr(method, "inner"):  # an iteration of a hundred steps and experts is the same with a few
            method.inner = replace(method.inner, steps=min(5, method.expert_epochs))
            method.experts = replace(method.experts, count=2)
        if hasattr(method, "cycles"):  # a search of a thousand births is the same with a few
            method.cycles = 4
        data = RandomLike(spec, max(4, method.least_per_class * spec.get("classes", 0)), batch_size=2)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(method, datamodule=data)
    assert trainer.global_step == 1


def test_every_config_parses(tmp_path, monkeypatch, capsys):
    """Through the command line itself: `--print_config` resolves every argument."""
    monkeypatch.chdir(tmp_path)
    for stem in RUNNABLE:
        with pytest.raises(SystemExit) as exit:
            main(["fit", "--config", stem, "--print_config"])
        assert exit.value.code in (0, None), stem
        text = capsys.readouterr().out
        assert "Unable to serialize" not in text
        assert yaml.safe_load(text)["model"]["class_path"].startswith("kdzoo")


def test_tiny_and_paper_size_are_one_class():
    for stem in RUNNABLE:
        if stem.endswith("_tiny") and stem.removesuffix("_tiny") in CONFIGS:
            assert settings(stem)["model"]["class_path"] == settings(stem.removesuffix("_tiny"))["model"]["class_path"]


def test_every_method_has_its_configs():
    for name, entry in registry.entries(registry.METHODS).items():
        if entry.distribution == registry.OWN:
            assert {name, f"{name}_tiny"} <= CONFIGS.keys(), name


@pytest.mark.bench
@pytest.mark.parametrize("stem", [stem for stem in RUNNABLE if stem.endswith("_tiny")])
def test_tiny_configs_run_whole(stem, tmp_path):
    main(["fit", "--config", stem, "--run_dir", str(tmp_path / "run"), "--show", "nothing"])
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.bench
@pytest.mark.parametrize("stem", BENCHES)
def test_proofs_hold_again(stem, tmp_path):
    name = stem.removesuffix("_bench")
    assert main(["bench", name, "--json", str(tmp_path / "result.json")]) in (0, None)
    assert (tmp_path / "result.json").is_file()
