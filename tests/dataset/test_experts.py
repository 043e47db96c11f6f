"""How experts are trained, and under which name they are kept."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kdzoo.console import console
from kdzoo.dataset.experts import Experts, Trajectories, fingerprint, gradient_penalty, trajectory
from kdzoo.dataset.networks import make
from kdzoo.dataset.preprocessing import ZCA, Preprocessing
from kdzoo.dataset.real_images import RealImages
from kdzoo.errors import UserError
from kdzoo.trajectories.flat import flatten

SHAPE = ("convnet", 6, None)
HOW = Experts(count=2, epochs=3, lr=0.1, batch_size=10, augmentation="none")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "quiet", True)


@pytest.fixture
def real(dots) -> RealImages:
    return RealImages.of(dots(), dots().spec)


def snapshots(real, dots, how=HOW, seed=0) -> np.ndarray:
    torch.manual_seed(seed)
    network = make("convnet", dots().spec, 6)
    return np.stack(list(trajectory(network, real, Preprocessing(dots().spec), how)))


def kept(real, dots, how=HOW, preprocess=None, shape=SHAPE) -> Trajectories:
    spec = dots().spec
    return Trajectories(real, preprocess or Preprocessing(spec), shape, spec, how, torch.device("cpu"))


def literal(real, dots, how, factors=(), penalty=0.0, second_rate=None) -> list[torch.Tensor]:
    """Plain training; from the epoch after `epochs // 2 + 1` on with the second rate and a new momentum."""
    torch.manual_seed(0)
    network, preprocess = make("convnet", dots().spec, 6), Preprocessing(dots().spec)
    momenta = [torch.zeros_like(p) for p in network.parameters()]
    found, rate, first = [flatten(network)], how.lr, True
    for epoch in range(how.epochs):
        for rows in torch.randperm(len(real)).split(how.batch_size):
            images, labels = preprocess(real.pixels(rows)), real.labels[rows]
            loss = cross_entropy(network(images), labels) * (factors[epoch] if epoch < len(factors) else 1)
            if penalty:
                images.requires_grad_()
                slope = torch.autograd.grad(network(images).sum(), images, create_graph=True)[0]
                loss = loss + penalty * ((slope.norm(dim=1) - 1) ** 2).mean()
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient, velocity in zip(network.parameters(), gradients, momenta):
                    gradient = gradient + how.weight_decay * parameter
                    velocity.copy_(gradient if first else how.momentum * velocity + gradient)
                    parameter -= rate * velocity
            first = False
        found.append(flatten(network))
        if second_rate and epoch == how.epochs // 2 + 1:
            rate, first = second_rate, True
            for velocity in momenta:
                velocity.zero_()
    return found


def test_an_expert_is_plain_sgd(real, dots):
    how = replace(HOW, momentum=0.9, weight_decay=0.01)
    found, expected = snapshots(real, dots, how), literal(real, dots, how)
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=1e-6)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in pairwise(found))  # no two snapshots are one tensor


def test_the_ingredients_of_a_smooth_expert(real, dots):
    """Clipped losses, a gradient penalty that they do not scale, a lower rate and a new optimizer in the middle."""
    how = replace(HOW, epochs=5, momentum=0.9, decay=0.6, clip=(0.5, 0.75), gradient_penalty=2.0)
    expected = literal(real, dots, how, (0.5, 0.75), 2.0, second_rate=0.6 * how.lr)
    np.testing.assert_allclose(snapshots(real, dots, how), torch.stack(expected).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"rho": 0.1},
        {"rho": 0.1, "alpha": 0.5},
        {"clip": (0.5,)},
        {"gradient_penalty": 1.0},
        {"augmentation": "cutout"},
        {"lr": 0.05},
        {"batch_size": 9},
    ],
)
def test_every_setting_is_in_the_trajectory_and_in_its_name(real, dots, change):
    assert np.abs(snapshots(real, dots, replace(HOW, **change)) - snapshots(real, dots))[1:].max() > 1e-5
    assert kept(real, dots, replace(HOW, **change)).buffer.folder != kept(real, dots).buffer.folder


def test_alpha_matters(real, dots):
    sam, gsam = (snapshots(real, dots, replace(HOW, rho=0.1, alpha=alpha)) for alpha in (0.0, 0.5))
    assert np.abs(sam - gsam).max() > 1e-6


def test_the_penalty_is_per_pixel_over_its_channels():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4, 5))
    slope = linear[1].weight.sum(0).view(2, 3, 4)  # of the sum of all logits, the same for every image
    expected = sum((slope[:, y, x].norm() - 1) ** 2 for y in range(3) for x in range(4)) / 12
    torch.testing.assert_close(gradient_penalty(linear, torch.randn(7, 2, 3, 4)), expected)


def test_smooth_experts_move_less(real, dots):
    """Clipping and the penalty, against plain experts with the same momentum."""
    plain = replace(HOW, epochs=4, momentum=0.9)
    smooth = replace(plain, clip=(0.5, 0.6, 0.7, 0.8), gradient_penalty=2.0)

    def way(how):
        steps = [np.diff(snapshots(real, dots, how, seed), axis=0) for seed in range(3)]
        return np.mean([np.linalg.norm(step, axis=1).mean() for step in steps])

    assert way(smooth) < 0.9 * way(plain)


def test_an_expert_is_a_function_of_its_number(real, dots):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = kept(real, dots).read(1, [0, 3])
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's randomness is used
    torch.manual_seed(6)
    other = Trajectories.read(kept(real, dots, replace(HOW, count=3)), 1, [0, 3])
    assert torch.equal(first, other)
    assert not torch.equal(first[0], kept(real, dots).read(0, [0])[0])
    alone = kept(real, dots, replace(HOW, seed=1)).read(1, [0])[0]
    assert not torch.equal(first[0], alone)


def test_more_experts_share_the_folder_and_other_data_do_not(real, dots):
    spec, folder = dots().spec, kept(real, dots).buffer.folder
    assert kept(real, dots, replace(HOW, count=4)).buffer.folder == folder
    changed = RealImages(real.images.clone(), real.labels, real.class_names)
    changed.images[0, 0, 0, 0] += 1
    relabelled = RealImages(real.images, real.labels.roll(1), real.class_names)
    assert len({fingerprint(each) for each in (real, changed, relabelled)}) == 3
    zca = ZCA(spec)
    zca.fit(lambda: [real.pixels(torch.arange(len(real)))], len(real))
    others = [
        kept(changed, dots),
        kept(relabelled, dots),
        kept(real, dots, preprocess=zca),
        kept(real, dots, preprocess=Preprocessing({**spec, "mean": [0.0]})),
        kept(real, dots, replace(HOW, epochs=4)),
        kept(real, dots, shape=("convnet", 7, None)),
        kept(real, dots, shape=("convnet", 6, 1)),
        kept(real, dots, shape=("mlp", 6, None)),
    ]
    assert len({folder, *(each.buffer.folder for each in others)}) == 9


def test_a_diverging_expert_is_named(real, dots):
    with pytest.raises(UserError, match=r"An expert diverged in epoch 1 of 3: lower experts.lr \(1e\+30\)"):
        snapshots(real, dots, replace(HOW, lr=1e30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "1 or more"),
        ({"lr": 0.0}, "positive lr"),
        ({"rho": -0.1}, "must not be negative"),
        ({"augmentation": "flop"}, "'flop' in the augmentation"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        replace(HOW, **change)
