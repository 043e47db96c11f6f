"""The networks: published sizes, no statistics across a batch, and what is too small."""

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from kdzoo.dataset.networks import POOL, Halve, make
from kdzoo.errors import UserError


def spec(size: int, channels: int = 3, classes: int = 10) -> dict:
    return {"channels": channels, "image_size": [size, size], "classes": classes}


def parameters(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_convnet_has_the_published_number_of_parameters():
    assert parameters(make("convnet", spec(32))) == 320_010


@pytest.mark.parametrize(("size", "depth"), [(28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_follows_the_resolution(size, depth):
    network = make("convnet", spec(size), width=8)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.body) == depth
    assert network.head.in_features == 8 * 4 * 4


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("name", POOL)
def test_every_architecture_takes_every_size(name, size):
    network = make(name, spec(size, channels=1 if size == 28 else 3, classes=7), width=8).eval()
    x = torch.randn(3, 1 if size == 28 else 3, size, size)
    logits = network(x)
    assert logits.shape == (3, 7)
    assert torch.equal(logits, network.head(network.features(x)))


@pytest.mark.parametrize("name", POOL)
def test_an_image_does_not_see_its_batch(name):
    network = make(name, spec(32), width=8).train()
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-4, rtol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (2, 3)])
def test_halve_is_average_pooling(height, width):
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(Halve()(x), avg_pool2d(x, 2))
    weights = torch.randn_like(Halve()(x))
    mine, torchs = (torch.autograd.grad((pooled * weights).sum(), x)[0] for pooled in (Halve()(x), avg_pool2d(x, 2)))
    torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize(("size", "depth"), [(8, 3), (28, 5), (32, 5), (3, None)])
def test_a_last_map_below_two_pixels_is_refused(size, depth):
    with pytest.raises(UserError, match=r"less than 2x2, .* use a depth of \d or less"):
        make("convnet", spec(size), 8, depth)


def test_two_pixels_are_enough():
    assert make("convnet", spec(8), 8, 2).head.in_features == 8 * 2 * 2


@pytest.mark.parametrize(("name", "size"), [("lenet", 12), ("alexnet", 4), ("vgg11", 16), ("resnet18", 8)])
def test_images_too_small_for_an_architecture_are_refused(name, size):
    with pytest.raises(UserError, match=rf"shrinks images of {size}x{size} pixels to nothing"):
        make(name, spec(size))


def test_unknown_names_and_widths():
    with pytest.raises(UserError, match=r"no network 'convnot' .* Near: convnet"):
        make("convnot", spec(32))
    with pytest.raises(UserError, match="width 0"):
        make("convnet", spec(32), 0)
