"""Exported networks load without kdzoo, and give the logits that they gave."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file

from kdzoo import __version__
from kdzoo.errors import UserError
from kdzoo.export import image as module
from kdzoo.export.image import export_image_network, load_image_network
from kdzoo.students.build import build
from kdzoo.students.network import ImageNetwork

GREY = {
    "modality": "image",
    "classes": 10,
    "class_names": [f"class {number}" for number in range(10)],
    "channels": 1,
    "image_size": [28, 28],
    "mean": [0.286],
    "std": [0.353],
}
COLOUR = GREY | {"channels": 3, "image_size": [32, 24], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
SCORES = {"test/accuracy": 84.2, "test/nll": 0.5}


def trained(name: str, spec: dict) -> ImageNetwork:
    """A network that is unlike a fresh one in weights and in batch statistics."""
    torch.manual_seed(5)
    network = build(name, spec)
    images = torch.rand(4, spec["channels"], *spec["image_size"])
    for _ in range(2):
        network(images)  # in training mode
    return network.eval()


def images_for(spec: dict, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, spec["channels"], *spec["image_size"], generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def small() -> ImageNetwork:
    return trained("cnn_14k", GREY)


@pytest.fixture(scope="module")
def original(small, tmp_path_factory) -> Path:
    """An export of `small`, to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("export") / "export"
    export_image_network(small, GREY, folder, SCORES)
    return folder


@pytest.fixture
def exported(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "export"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def readme_code(folder: Path) -> str:
    """The indented lines of the README's last block, for this folder."""
    lines = (folder / "README.md").read_text(encoding="utf-8").split("\n\n")
    return dedent(next(block for block in reversed(lines) if block.startswith("    "))).replace("FOLDER", str(folder))


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("resnet18.a1_in1k", GREY),
        ("vit_tiny_patch16_224", COLOUR | {"image_size": [32, 48], "classes": 3}),
    ],
)
@torch.no_grad()
def test_timm_loads_it_without_kdzoo(tmp_path, name, spec):
    network, image = trained(name, spec), images_for(spec)
    folder = tmp_path / "a folder"
    files = export_image_network(network, spec, folder)
    assert files == ["README.md", "config.json", "model.safetensors", "preprocessing.json"]
    torch.save(image, tmp_path / "image.pt")
    code = f"import torch\nimage = torch.load('image.pt')\n{readme_code(folder)}\n"
    code += "import sys\nassert 'kdzoo' not in sys.modules\ntorch.save(logits.detach(), 'logits.pt')\n"
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), network(image), rtol=1e-5, atol=1e-5)

    again, config = load_image_network(folder)
    assert torch.equal(again.eval()(image), network(image))
    assert config["kdzoo"]["spec"] == spec
    assert again.architecture == name.partition(".")[0]


def test_files(small, original):
    names = {path.name for path in original.iterdir()}
    assert names == {"README.md", "config.json", "model.onnx", "model.safetensors", "preprocessing.json"}
    state = load_file(original / "model.safetensors")
    assert state.keys() == small.network.state_dict().keys()
    preprocessing = read(original / "preprocessing.json")
    assert preprocessing["input_size"] == [1, 28, 28]
    assert preprocessing["mean"] == pytest.approx([0.286])
    assert preprocessing["std"] == pytest.approx([0.353])
    assert preprocessing["class_names"] == GREY["class_names"]
    config = read(original / "config.json")
    assert config["kdzoo"] == {"spec": GREY, "scores": SCORES, "version": __version__}
    assert config["pretrained_cfg"]["mean"] == pytest.approx([0.286])
    assert config["architecture"] == "cnn_14k"
    assert "cnn_14k" in (original / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("batch", [1, 7])
@torch.no_grad()
def test_onnx(small, original, batch):
    session = onnxruntime.InferenceSession(original / "model.onnx")
    assert [(entry.name, entry.type) for entry in session.get_inputs()] == [("image", "tensor(float)")]
    image = images_for(GREY, batch)
    (logits,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), small(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_wrn_16_1"])
@torch.no_grad()
def test_onnx_of_the_others(tmp_path, name):
    network = trained(name, COLOUR)
    files = export_image_network(network, COLOUR, tmp_path / "export")
    assert "model.onnx" in files
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    for batch in (1, 5):
        (logits,) = session.run(None, {"image": images_for(COLOUR, batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(images_for(COLOUR, batch)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_loads_again(small, original):
    network, config = load_image_network(original)
    image = images_for(GREY)
    assert torch.equal(network.eval()(image), small(image))
    assert network.architecture == "cnn_14k"
    assert config["kdzoo"]["scores"] == SCORES
    local = timm.create_model(f"local-dir:{original}", pretrained=True).eval()
    assert torch.equal(local((image - small.mean) / small.std), small(image))
    weights = build("cnn_14k", GREY | {"mean": [0.9], "std": [0.8]}, str(original / "model.safetensors")).eval()
    assert torch.equal(weights(image), small(image))  # with the normalisation beside the weights


def test_export_changes_nothing_and_says_nothing(small, tmp_path, capfd):
    small.train()
    state = {key: value.clone() for key, value in small.state_dict().items()}
    level = logging.getLogger("torch.onnx").level
    export_image_network(small, GREY, tmp_path / "made" / "on the way" / "export")
    assert capfd.readouterr() == ("", "")
    assert all(module.training for module in small.modules())
    assert all(torch.equal(value, state[key]) for key, value in small.state_dict().items())
    assert logging.getLogger("torch.onnx").level == level
    small.eval()


@torch.no_grad()
def test_replaces_an_earlier_export(exported):
    (exported / "stale.txt").write_text("of the earlier one")
    network = trained("resnet18", COLOUR)
    files = export_image_network(network, COLOUR, exported)
    assert sorted(path.name for path in exported.iterdir()) == files
    assert load_image_network(exported)[0].architecture == "resnet18"
    assert [path.name for path in exported.parent.iterdir()] == ["export"]


@pytest.mark.parametrize("step", ["save_for_hf", "write_onnx"])
def test_failure_leaves_the_earlier_export(small, exported, monkeypatch, step):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    step_itself = getattr(module, step)

    def fail(*args: object, **options: object) -> None:
        step_itself(*args, **options)
        raise OSError("the disk is full")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(OSError, match="the disk is full"):
        export_image_network(small, GREY, exported)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == ["export"]


def test_failed_rename_brings_the_earlier_export_back(small, exported, monkeypatch):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if Path(target) == exported and self.name == "export":
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(module, "write_onnx", lambda *_: None)  # it takes a second
    with pytest.raises(PermissionError):
        export_image_network(small, GREY, exported)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_no_export(tmp_path):
    with pytest.raises(UserError, match=r"nothing' is no export of kdzoo: config\.json is missing"):
        load_image_network(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no export of kdzoo: config\.json is missing"):
        load_image_network(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file' is no export of kdzoo"):
        load_image_network(tmp_path / "file")


@pytest.mark.parametrize("name", ["config.json", "preprocessing.json", "model.safetensors"])
def test_missing_file(exported, name):
    (exported / name).unlink()
    with pytest.raises(UserError, match=rf"export' is no export of kdzoo: {name} is missing"):
        load_image_network(exported)


@pytest.mark.parametrize("name", ["config.json", "preprocessing.json", "model.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_truncated_file(exported, name, part):
    path = exported / name
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(UserError, match=r"export' is damaged \(.+\): export the run again") as caught:
        load_image_network(exported)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"architecture": "cnn_168k"}, {"architecture": "no_such"}, {"model_args": {"in_chans": 3}}, {"kdzoo": None}],
)
def test_files_that_disagree(exported, change):
    config = read(exported / "config.json")
    (exported / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=r"is damaged \(.+\)"):
        load_image_network(exported)


def test_folder_of_timm_alone(tmp_path):
    """A folder that timm wrote has no spec."""
    timm.models.save_for_hf(timm.create_model("resnet18"), str(tmp_path), safe_serialization=True)
    with pytest.raises(UserError, match=r"is no export of kdzoo"):
        load_image_network(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "hf-hub:a/b"},
        {"architecture": "local-dir:/tmp"},
        {"model_args": {"in_chans": 1, "pretrained": True}},
        {"model_args": {"in_chans": 1, "checkpoint_path": "/tmp/other.pth"}},
    ],
)
def test_a_config_leads_nowhere_else(exported, change, monkeypatch):
    """A hostile config.json makes timm neither download nor open another file."""
    import timm

    create = timm.create_model

    def watched(name, **arguments):
        assert ":" not in name
        assert not {"pretrained", "checkpoint_path"} & arguments.keys()
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", watched)
    path = exported / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if "architecture" in change:
        with pytest.raises(UserError, match="no network named"):
            load_image_network(exported)
    else:
        load_image_network(exported)
