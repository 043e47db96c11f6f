"""The selective scan against a loop, and what timm asks of a network of such scans."""

import pytest
import timm
import torch

from kdzoo.errors import UserError
from kdzoo.metrics.flops import flops
from kdzoo.students import mamba
from kdzoo.students.build import build
from kdzoo.students.mamba import MambaBlock, selective_scan


def spec(channels: int = 1, size: tuple[int, int] = (28, 28), classes: int = 10) -> dict:
    statistics = {"mean": [0.5] * channels, "std": [0.25] * channels}
    return {"channels": channels, "classes": classes, "image_size": list(size), **statistics}


@pytest.fixture(params=list(mamba.SHAPES))
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("length", [1, 16, 200])
def test_the_scan_is_the_loop_in_double_precision(length):
    torch.manual_seed(0)
    batch, width, states = 2, 5, 3
    x, b, c = torch.randn(batch, length, width), *torch.randn(2, batch, length, states)
    delta, a, d = torch.rand(batch, length, width), -torch.rand(width, states) * 4, torch.randn(width)
    x.requires_grad_()
    found = selective_scan(x, delta, a, b, c, d)
    x64, delta64, a64, b64, c64, d64 = (each.detach().double() for each in (x, delta, a, b, c, d))
    expected = torch.zeros(batch, length, width, dtype=torch.float64)
    for n in range(batch):
        for e in range(width):
            h = torch.zeros(states, dtype=torch.float64)
            for t in range(length):
                h = (delta64[n, t, e] * a64[e]).exp() * h + delta64[n, t, e] * b64[n, t] * x64[n, t, e]
                expected[n, t, e] = c64[n, t] @ h + d64[e] * x64[n, t, e]
    assert (found - expected).abs().max() < 1e-5
    found.sum().backward()
    assert x.grad.isfinite().all()


def test_the_scan_differentiates_as_finite_differences_do():
    torch.manual_seed(0)
    shapes = [(2, 4, 3), (2, 4, 3), (3, 2), (2, 4, 2), (2, 4, 2), (3,)]
    x, delta, a, b, c, d = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(
        lambda *t: selective_scan(t[0], t[1].exp(), -t[2].exp(), *t[3:]), (x, delta, a, b, c, d)
    )


def test_a_token_knows_those_before_it_alone():
    torch.manual_seed(0)
    block, tokens = MambaBlock(16, states=4), torch.randn(2, 10, 16)
    changed = tokens.clone()
    changed[:, 6:] += 1
    before, after = block(tokens), block(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_it_starts_as_the_paper_says():
    ssm = MambaBlock(32, states=8).ssm
    torch.testing.assert_close(-ssm.a_log.exp(), -torch.arange(1.0, 9).expand(64, 8))
    step = torch.nn.functional.softplus(ssm.step.bias)
    assert step.min() >= 1e-3 * 0.999
    assert step.max() <= 1e-1 * 1.001


def test_timm_knows_it(name):
    record, network = timm.get_pretrained_cfg(name), timm.create_model(name)
    assert dict(network.named_modules())[record.classifier] is network.get_classifier()
    assert record.first_conv in dict(network.named_modules())
    student = build(name, spec(3, (56, 28), 7)).train()
    logits = student(torch.rand(2, 3, 56, 28))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert network.no_weight_decay() <= dict(network.named_parameters()).keys()
    assert len(network.no_weight_decay()) == 3 * len(network.blocks)


@torch.no_grad()
def test_forward_intermediates(name):
    network, x = timm.create_model(name).eval(), torch.randn(2, 1, 28, 28)
    last, maps = network.forward_intermediates(x)
    assert torch.equal(last, network.forward_features(x))
    assert torch.equal(network.forward_head(last), network(x))
    assert network.forward_head(last, pre_logits=True).shape == (2, network.num_features)
    for info, feature in zip(network.feature_info, maps, strict=True):
        assert feature.shape[:2] == (2, info["num_chs"])
        assert 28 / feature.shape[3] == info["reduction"]
    only = network.forward_intermediates(x, indices=[-1], intermediates_only=True, norm=True)
    torch.testing.assert_close(only[0].flatten(2).mT, last)


def test_images_that_are_not_cut_into_patches_are_refused():
    with pytest.raises(UserError, match=r"'mamba_16x1_patch7' does not work on images of 32 x 32 \(they are no multip"):
        build("mamba_16x1_patch7", spec(size=(32, 32)))


def test_flops_count_the_scan():
    network = build("mamba_16x1_patch7", spec()).train()
    tokens, width, inner, states = 16, 16, 32, 8
    linear = 2 * tokens * (49 * width + width * 2 * inner + inner * (1 + 2 * states) + inner + inner * width)
    conv = 2 * inner * 4 * (tokens + 3)  # with the three steps that are cut off
    expected = linear + conv + 2 * width * 10 + tokens * inner * (7 * states + 3)
    assert flops(network, spec()) == expected
    assert network.training
    assert flops(build("mlp_32", spec()), spec()) == 2 * (784 * 32 + 32 * 10)
