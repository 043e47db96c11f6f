"""Segmentation networks: shapes, the published size, weights, and what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdzoo.errors import UserError
from kdzoo.students.segmentation import UNETS, build_segmenter

SPEC = {"classes": 5, "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


@pytest.mark.parametrize(
    ("name", "stride"),
    [("unet_110k", 4), ("deeplabv3_resnet18", 8), ("pspnet_resnet18", 8), ("deeplabv3_mobilenetv3_small_050", 8)],
)
def test_scores_are_small_and_logits_are_of_the_images_size(name, stride):
    network = build_segmenter(name, SPEC).eval()
    image = torch.rand(2, 3, 48, 64)
    scores, auxiliary = network.scores(image)
    assert scores.shape == (2, 5, 48 // stride, 64 // stride)
    assert auxiliary is None  # only while it is trained
    assert network(image).shape == (2, 5, 48, 64)
    assert network(image[..., :45, :61]).shape == (2, 5, 45, 61)
    assert torch.equal(network.features(image, ["scores"])["scores"], scores)
    network.train()
    auxiliary = network.scores(image)[1]
    assert (auxiliary is None) == name.startswith("unet")
    if auxiliary is not None:
        assert auxiliary.shape[:2] == (2, 5)


@pytest.mark.parametrize("name", UNETS)
def test_names_say_the_number_of_parameters(name):
    count = sum(p.numel() for p in build_segmenter(name, {**SPEC, "classes": 11}).parameters())
    assert name == f"unet_{round(count / 10_000) * 10}k"


def test_deeplab_on_resnet18_has_the_size_of_the_fields_tables():
    with torch.device("meta"):
        network = build_segmenter("deeplabv3_resnet18", {**SPEC, "classes": 19})
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(13.6e6, rel=0.02)


def test_the_network_normalises_its_image():
    network = build_segmenter("unet_110k", SPEC, label_channels=2).eval()
    assert network.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6, 0, 0])
    assert network.std.flatten().tolist() == pytest.approx([0.2, 0.25, 0.3, 0.25, 0.25])
    image = torch.rand(1, 5, 16, 16)
    torch.testing.assert_close(network.scores(image)[0], network.network((image - network.mean) / network.std)[0])


def test_a_channel_of_zeros_is_no_channel():
    """Why a label-assisted student needs no channel for labels: with zeros in it, it is the network without."""
    wide = build_segmenter("unet_110k", SPEC, label_channels=1).eval()
    narrow = build_segmenter("unet_110k", SPEC).eval()
    first = "network.stem.0.0.weight"
    state = wide.state_dict()
    narrow.load_state_dict({**state, first: state[first][:, :3]})
    image = torch.rand(2, 3, 32, 32)
    beside = torch.cat([image, torch.zeros(2, 1, 32, 32)], dim=1)
    torch.testing.assert_close(wide(beside), narrow(image))


def test_an_encoder_starts_from_a_file(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "r18.safetensors")
    network = build_segmenter("pspnet_resnet18", SPEC, label_channels=1, weights=str(tmp_path / "r18.safetensors"))
    own = network.network.encoder.state_dict()
    assert torch.equal(own["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert own["conv1.weight"].shape == (64, 4, 7, 7)  # timm's adaptation to further channels
    assert "state_dict" not in network.network.encoder.pretrained_cfg


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("unet_110", None, "no segmentation network named 'unet_110'. Did you mean|no segmentation network"),
        ("deeplabv3_resnet1", None, "no segmentation network named 'deeplabv3_resnet1'"),
        ("resnet18", None, "no segmentation network named 'resnet18'"),
        ("unet_110k", "pretrained", "no encoder of timm"),
        ("deeplabv3_resnet18", "none.safetensors", "there is no weights file none.safetensors"),
        ("deeplabv3_cnn_14k", None, "'cnn_14k' cannot be the encoder"),
    ],
)
def test_what_cannot_be_built_is_said(name, weights, message):
    with pytest.raises(UserError, match=message):
        build_segmenter(name, SPEC, weights=weights)
