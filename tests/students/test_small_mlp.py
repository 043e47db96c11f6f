"""The perceptron: its size, and what timm asks of it."""

import timm
import torch

from kdzoo.students.build import build


def test_it_takes_images_of_any_size():
    spec = {"classes": 7, "channels": 3, "image_size": [9, 5], "mean": [0.5] * 3, "std": [0.25] * 3}
    network = build("mlp_32", spec)
    assert sum(parameter.numel() for parameter in network.parameters()) == 135 * 32 + 32 + 32 * 7 + 7
    logits = network(torch.rand(4, 3, 9, 5))
    assert logits.shape == (4, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.tap_shapes(spec, ["pre_logits", "fc1"]) == {"pre_logits": (32,), "fc1": (32,)}


def test_timm_knows_it():
    record, network = timm.get_pretrained_cfg("mlp_32"), timm.create_model("mlp_32").eval()
    assert dict(network.named_modules())[record.classifier] is network.get_classifier()
    x = torch.rand(2, 1, 28, 28)
    hidden = network.forward_features(x)
    assert torch.equal(network.forward_head(hidden), network(x))
    assert torch.equal(network.forward_head(hidden, pre_logits=True), hidden)
    network.reset_classifier(0)
    assert torch.equal(network(x), hidden)
