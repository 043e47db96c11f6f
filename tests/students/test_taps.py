"""Features at taps of kdzoo's and timm's networks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.students.build import build
from kdzoo.students.network import ImageNetwork

SPEC = {"channels": 3, "classes": 10, "image_size": [32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}

# two module paths in order of depth, for each network
PATHS = {
    "cnn_14k": ("stage1", "stage3.0"),
    "cifar_wrn_16_1": ("block1.1.conv1", "block3"),
    "resnet18": ("layer1.0", "layer3"),
    "vit_tiny_patch16_224": ("blocks.0", "blocks.2.mlp"),
    "mobilenetv3_small_050": ("blocks.1", "blocks.4"),
}
MIXES = {
    "paths": lambda early, late: [late, early],
    "integers": lambda early, late: ["-1", "0", "1"],
    "features": lambda early, late: ["features"],
    "pre_logits": lambda early, late: ["pre_logits", "features"],
    "all": lambda early, late: ["pre_logits", late, "1", early, "features"],
}


def network_of(name: str) -> ImageNetwork:
    torch.manual_seed(0)
    return build(name, SPEC).eval()


@pytest.fixture(scope="module", params=PATHS)
def network(request) -> ImageNetwork:
    return network_of(request.param)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def executed(network: ImageNetwork, run: Callable[[], object]) -> set[str]:
    """The names of the leaf modules that `run` calls."""
    called: set[str] = set()
    leaves = [(name, module) for name, module in network.network.named_modules() if not list(module.children())]
    handles = [leaf.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, leaf in leaves]
    run()
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize("mix", MIXES)
def test_same_in_both_ways(network, image, mix):
    taps = MIXES[mix](*PATHS[network.architecture])
    logits, beside = network.forward_with(image, taps)
    alone = network.features(image, taps)
    torch.testing.assert_close(logits, network(image), rtol=1e-5, atol=1e-5)
    assert list(beside) == list(alone) == taps
    for tap in taps:
        assert torch.equal(beside[tap], alone[tap]), tap
        assert beside[tap].requires_grad
    shapes = network.tap_shapes(SPEC, taps)
    assert shapes == {tap: tuple(feature.shape[1:]) for tap, feature in alone.items()}


@torch.no_grad()
def test_against_timm(network, image):
    early, _ = PATHS[network.architecture]
    inside = network.network
    x = (image - network.mean) / network.std
    kept = []
    handle = inside.get_submodule(early).register_forward_hook(lambda _, __, output: kept.append(output.clone()))
    expected = {"features": inside.forward_features(x)}
    handle.remove()
    expected |= {
        early: kept[0],
        "pre_logits": inside.forward_head(expected["features"], pre_logits=True),
        "1": inside.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)[1],
    }
    for tap, feature in network.features(image, list(expected)).items():
        assert torch.equal(feature, expected[tap]), tap
    assert expected["pre_logits"].ndim == 2
    assert expected["1"].ndim == 4
    assert torch.equal(network.forward_head(expected["features"]), network(image))
    assert torch.equal(network.forward_head(expected["features"], pre_logits=True), expected["pre_logits"])


def test_reaches_the_parameters(network, image):
    early, _ = PATHS[network.architecture]
    logits, features = network.forward_with(image, [early, "features"])
    (at_features,) = torch.autograd.grad(logits.sum(), features["features"], retain_graph=True)
    assert at_features.abs().sum() > 0  # the logits were computed from this very tensor
    features[early].square().sum().backward()
    assert next(network.network.parameters()).grad.abs().sum() > 0
    network.zero_grad(set_to_none=True)


def test_stops_at_the_deepest_path(image):
    network = network_of("resnet18")
    called = executed(network, lambda: network.features(image, ["layer2.0", "layer1"]))
    assert "layer2.0.act2" in called
    assert not any(name.startswith(("layer2.1", "layer3", "layer4", "global_pool", "fc")) for name in called)
    whole = executed(network, lambda: network.forward_with(image, ["layer1"]))
    assert whole == executed(network, lambda: network(image))


def test_stops_at_the_deepest_integer(network, image):
    whole = executed(network, lambda: network(image))
    some = executed(network, lambda: network.features(image, ["1", "0"]))
    assert len(some) < len(whole)
    assert some < executed(network, lambda: network.features(image, ["2"])) < whole


def test_head_only_where_needed(image):
    network = network_of("resnet18")
    assert not executed(network, lambda: network.features(image, ["features", "layer1"])) & {"global_pool.pool", "fc"}
    assert "fc" not in executed(network, lambda: network.features(image, ["pre_logits", "1", "layer1"]))
    assert torch.equal(network.features(image, ["features", "fc"])["fc"], network(image))


def test_one_pass(image):
    network = network_of("resnet18")
    calls = []
    for name in ("conv1", "layer1.0.conv1", "layer4"):
        network.network.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    for run in (network.forward_with, network.features):
        calls.clear()
        run(image, ["pre_logits", "layer2", "1", "features"])
        assert len(calls) == 3


class InPlace(nn.Module):
    """A convolution whose output is changed by what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x)).mean((2, 3))


def test_relu_in_place_leaves_the_feature():
    network = ImageNetwork("in_place", InPlace(), [0.0], [1.0])
    image = torch.rand(2, 1, 8, 8)
    expected = network.network.conv(image)
    assert expected.min() < 0
    logits, taps = network.forward_with(image, ["conv"])
    assert torch.equal(taps["conv"], expected)
    assert torch.equal(logits, expected.relu().mean((2, 3)))
    (logits.sum() + taps["conv"].sum()).backward()
    assert torch.equal(network.features(image, ["relu", "conv"])["conv"], expected)


def test_tap_that_a_pass_does_not_reach():
    network = ImageNetwork("in_place", InPlace(), [0.0], [1.0])
    for run in (network.forward_with, network.features):
        with pytest.raises(UserError, match=r"never calls 'unused'"):
            run(torch.rand(2, 1, 8, 8), ["unused"])
    with pytest.raises(UserError, match=r"no numbered taps"):
        network.features(torch.rand(2, 1, 8, 8), ["0"])


def test_first_call_counts():
    """A module that a pass calls twice gives its first output."""
    inner = nn.Sequential(conv := nn.Conv2d(1, 1, 1), nn.Tanh(), conv)
    network = ImageNetwork("twice", inner, [0.0], [1.0])
    image = torch.rand(1, 1, 2, 2)
    assert torch.equal(network.forward_with(image, ["0"])[1]["0"], conv(image))


def test_module_without_a_tensor(image):
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x)[0])

    network = ImageNetwork("pair", Net(Pair(), nn.Conv2d(3, 1, 1)), [0.0] * 3, [1.0] * 3)
    with pytest.raises(UserError, match=r"tap '0' of 'pair' gives no tensor"):
        network.features(image, ["0"])


def test_hooks_are_gone(image):
    network = network_of("resnet18")
    network.features(image, ["layer1", "pre_logits"])
    network.forward_with(image, ["layer1"])
    with pytest.raises(UserError):
        network.features(image, ["layer1", "nowhere"])
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("layer33", r"'resnet18' has no module 'layer33' to tap\. Near: .*layer3"),
        ("xyz", r"no module 'xyz' to tap\. Its parts: conv1, bn1"),
        ("", r"no module '' to tap"),
        ("5", r"no tap 5: its taps are 0 to 4"),
        ("-6", r"no tap -6"),
    ],
)
def test_unknown_tap(image, tap, message):
    network = network_of("resnet18")
    for run in (network.forward_with, network.features):
        with pytest.raises(UserError, match=message):
            run(image, ["layer1", tap])


@pytest.mark.parametrize("name", ["cnn_14k", "resnet18"])
def test_dry_run_leaves_no_trace(name):
    network = build(name, SPEC)
    network.train()
    network.network.get_submodule(PATHS[name][0]).eval()
    modes = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    network.tap_shapes(SPEC, ["1", PATHS[name][1], "pre_logits"])
    with pytest.raises(UserError):
        network.tap_shapes(SPEC, ["nowhere"])
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_bfloat16(network, image):
    early, late = PATHS[network.architecture]
    taps = [late, "0", "features", "pre_logits", early]
    exact = network.features(image, taps)
    low = network_of(network.architecture)
    low.network.bfloat16()
    with torch.no_grad():
        logits, features = low.forward_with(image, taps)
    assert logits.dtype == torch.bfloat16
    for tap, feature in features.items():
        assert feature.dtype == torch.bfloat16
        torch.testing.assert_close(feature.float(), exact[tap], rtol=0.1, atol=0.1 * exact[tap].abs().max().item())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.features(image, taps).keys() == exact.keys()


def test_normalises_by_itself(network, image):
    x = (image - torch.tensor(SPEC["mean"]).view(1, 3, 1, 1)) / torch.tensor(SPEC["std"]).view(1, 3, 1, 1)
    assert torch.equal(network(image), network.network(x))
    assert all(key.startswith("network.") for key in network.state_dict())
