"""kdzoo's own networks: their sizes, and timm's interface."""

import pytest
import timm
import torch

from kdzoo.students import cifar_resnet, cifar_wrn, small_cnn
from kdzoo.students.build import build

SEARCHED = [[*small_cnn.SEARCHED], [*cifar_resnet.SEARCHED]]  # alike: of each space the first and the last
OWN = [name for module in (small_cnn, cifar_resnet, cifar_wrn) for name in module.default_cfgs]
OWN = [name for name in OWN if all(name not in space[1:-1] for space in SEARCHED)]
OWN.remove("cifar_wrn_28_20")  # as cifar_wrn_16_10, with 146 million parameters


def spec(channels: int = 3, classes: int = 10, size: tuple[int, int] = (32, 32)) -> dict:
    statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
    return {"channels": channels, "classes": classes, "image_size": list(size), **statistics}


@pytest.mark.parametrize(
    ("name", "channels", "classes", "count"),
    [
        ("cnn_14k", 1, 10, 13_906),
        ("cnn_46k", 1, 10, 46_122),
        ("cnn_168k", 1, 10, 167_794),
        ("cifar_resnet20", 3, 100, 278_324),
        ("cifar_resnet56", 3, 100, 861_620),
        ("cifar_resnet8x4", 3, 100, 1_233_540),
        ("cifar_resnet32x4", 3, 100, 7_433_860),
        ("cifar_wrn_16_2", 3, 100, 703_284),
        ("cifar_wrn_40_2", 3, 100, 2_255_156),
        ("resnet18", 3, 1000, 11_689_512),
        ("resnet34", 3, 1000, 21_797_672),
        ("resnet50", 3, 1000, 25_557_032),
    ],
)
def test_parameter_count(name, channels, classes, count):
    network = build(name, spec(channels, classes))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.fixture(params=OWN)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (29, 13))])
def test_any_image(name, channels, size):
    network = build(name, spec(channels, 7, size)).train()
    logits = network(torch.rand(2, channels, *size))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_timm_knows_it(name):
    assert timm.is_model(name)
    record = timm.get_pretrained_cfg(name)
    network = timm.create_model(name)
    assert network.num_classes == record.num_classes == 10
    modules = dict(network.named_modules())
    assert record.first_conv in modules
    assert modules[record.first_conv].in_channels == network.in_chans == record.input_size[0]
    assert modules[record.classifier] is network.get_classifier()


@torch.no_grad()
def test_forward_intermediates(name):
    network = timm.create_model(name, in_chans=3).eval()
    x = torch.randn(2, 3, 21, 32)
    last, maps = network.forward_intermediates(x)
    assert torch.equal(last, network.forward_features(x))
    assert torch.equal(network.forward_head(last), network(x))
    assert network.forward_head(last, pre_logits=True).shape == (2, network.num_features)
    for info, feature in zip(network.feature_info, maps, strict=True):
        assert feature.shape[:2] == (2, info["num_chs"])
        assert info["module"] in dict(network.named_modules())
    reductions = [round(32 / feature.shape[3]) for feature in maps]
    assert reductions == [info["reduction"] for info in network.feature_info]

    only = network.forward_intermediates(x, indices=[1, -1], intermediates_only=True)
    assert len(only) == 2
    assert torch.equal(only[0], maps[1])
    assert torch.equal(only[1], maps[-1])
    assert torch.equal(network.forward_intermediates(x, norm=True, intermediates_only=True)[-1], last)
    early, (stem, first) = network.forward_intermediates(x, indices=[0, 1], stop_early=True)
    assert torch.equal(stem, maps[0])
    assert torch.equal(first, maps[1])
    assert early.shape == first.shape
    with pytest.raises(ValueError, match="NCHW"):
        network.forward_intermediates(x, output_fmt="NLC")


def test_reset_classifier(name):
    network = timm.create_model(name, in_chans=3).eval()
    x = torch.randn(2, 3, 16, 16)
    network.reset_classifier(4)
    assert network(x).shape == (2, 4)
    network.reset_classifier(0)
    assert network(x).shape == (2, network.num_features)
    network.reset_classifier(0, "")
    assert network(x).ndim == 4
    network.reset_classifier(5, "max")
    assert network(x).shape == (2, 5)


@torch.no_grad()
def test_features_only(name):
    network = timm.create_model(name, in_chans=3).eval()
    features = timm.create_model(name, in_chans=3, features_only=True).eval()
    features.model.load_state_dict(network.state_dict(), strict=False)
    x = torch.randn(2, 3, 20, 20)
    maps = network.forward_intermediates(x, intermediates_only=True)
    for found, expected in zip(features(x), maps, strict=True):
        assert torch.equal(found, expected)
    assert features.feature_info.channels() == [feature.shape[1] for feature in maps]
    two = timm.create_model(name, in_chans=3, features_only=True, out_indices=(1, 2))
    assert len(two(x)) == 2
