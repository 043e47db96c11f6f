"""kdzoo's small vision transformers behind timm's interface."""

import pytest
import timm
import torch

from kdzoo.students.build import build

SPEC = {"channels": 1, "classes": 10, "image_size": [28, 28], "mean": [0.3], "std": [0.35]}


@pytest.mark.parametrize(
    ("name", "width", "depth", "size"),
    [("vit_48x4_patch4_28", 48, 4, 117_000), ("vit_96x6_patch4_28", 96, 6, 678_000)],
)
def test_the_name_says_the_shape(name, width, depth, size):
    network = timm.create_model(name)
    assert (network.embed_dim, len(network.blocks), network.patch_embed.num_patches) == (width, depth, 49)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(size, rel=0.01)


def test_other_images_and_no_head():
    network = build("vit_48x4_patch4_28", {**SPEC, "channels": 3, "image_size": [32, 24], "mean": [0.3] * 3})
    assert network.network.patch_embed.grid_size == (8, 6)
    assert network(torch.rand(2, 3, 32, 24)).shape == (2, 10)
    assert build("vit_48x4_patch4_28", {**SPEC, "classes": 0})(torch.rand(2, 1, 28, 28)).shape == (2, 48)
    assert network.features(torch.rand(2, 3, 32, 24), ["1"])["1"].shape == (2, 48, 8, 6)
