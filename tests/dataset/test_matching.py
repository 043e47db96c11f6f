"""Distribution and gradient matching against their equations, written out."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdzoo.dataset.dc import DC
from kdzoo.dataset.dm import DM
from kdzoo.dataset.dsa import DSA
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.networks import make
from kdzoo.errors import UserError
from kdzoo.losses.matching import distribution_loss, gradient_distance

SMALL = {"width": 6, "evaluation": Evaluation(networks=1, epochs=1)}


def test_distribution_loss_is_its_equation():
    real, synthetic = torch.randn(3, 5, 4), torch.randn(3, 2, 4)
    expected = 0.0
    for label in range(3):
        for feature in range(4):
            means = [sum(float(x) for x in part[label, :, feature]) / part.shape[1] for part in (real, synthetic)]
            expected += (means[0] - means[1]) ** 2
    assert float(distribution_loss(real, synthetic)) == pytest.approx(expected, rel=1e-5)


def test_gradient_distance_is_its_equation():
    shapes = [(3, 2, 3, 3), (3,), (4, 12), (4,)]
    real, synthetic = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    expected = 0.0
    for a, b in ((real[0], synthetic[0]), (real[2], synthetic[2])):  # no biases, no norms
        for row in range(len(a)):
            u, v = ([float(x) for x in part[row].flatten()] for part in (a, b))
            dot = sum(x * y for x, y in zip(u, v))
            expected += 1 - dot / (math.hypot(*u) * math.hypot(*v) + 1e-6)
    assert float(gradient_distance(real, synthetic)) == pytest.approx(expected, rel=1e-5)


def test_the_distance_of_a_gradient_to_itself_is_zero():
    gradient = [torch.randn(3, 4), torch.randn(5, 2, 2)]
    assert float(gradient_distance(gradient, gradient)) == pytest.approx(0, abs=1e-4)
    assert float(gradient_distance(gradient, [-g for g in gradient])) == pytest.approx(16, abs=1e-4)


def test_dm_matches_means_of_features(dots, fit):
    """One update, written out, with every real image of a class and no augmentation: nothing is left to chance."""
    data = dots()
    method = DM(ipc=2, lr_img=0.5, momentum_img=0.5, batch_real=100, augmentation="none", **SMALL)
    start = DM(ipc=2, lr_img=0.0, batch_real=100, augmentation="none", **SMALL)
    networks = []
    fresh = method.fresh_network
    method.fresh_network = lambda: networks.append(fresh()) or networks[-1]
    fit(start, data)
    fit(method, data)
    images = start.images.detach().requires_grad_()
    features = networks[0].features(images)
    total = 0
    for label in range(3):
        real = start.preprocess(data.train_set.images[data.train_set.labels == label] / 255)
        wanted = networks[0].features(real).mean(0).detach()
        total = total + (wanted - features[2 * label : 2 * label + 2].mean(0)).square().sum()
    total.backward()
    torch.testing.assert_close(method.images.detach(), (images - 0.5 * images.grad).detach())
    assert float(method.terms["train/distance"]) == pytest.approx(float(total.detach()), rel=1e-4)


def test_dm_has_a_new_network_in_every_iteration(dots, fit):
    method = DM(ipc=1, batch_real=2, **SMALL)
    networks = []
    fresh = method.fresh_network
    method.fresh_network = lambda: networks.append(fresh()) or networks[-1]
    fit(method, dots(), steps=3)
    weights = [network.head.weight for network in networks]
    assert len(weights) == 3
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_dm_shows_both_batches_the_same_operation(dots, fit, monkeypatch):
    seen = []

    def remember(x, strategy, seed=None, siamese=False):
        seen.append((len(x), seed, siamese))
        return x

    monkeypatch.setattr("kdzoo.dataset.dm.augment", remember)
    fit(DM(ipc=1, batch_real=4, **SMALL), dots())
    real, synthetic = seen[:3], seen[3:]
    assert [size for size, _, _ in real] == [4, 4, 4]
    assert [size for size, _, _ in synthetic] == [1, 1, 1]
    assert [seed for _, seed, _ in real] == [seed for _, seed, _ in synthetic]
    assert len({seed for _, seed, _ in real}) == 3
    assert all(siamese for _, _, siamese in seen)


def test_dc_is_its_algorithm(dots, fit):
    """Two updates with a stretch of training between them, written out for all classes at once."""
    data = dots()
    options = {"ipc": 2, "init": "real", "loops": (2, 3), "lr_net": 0.1, "batch_real": 100, **SMALL}
    start = DC(**{**options, "lr_img": 0.0})
    fit(start, data)
    method = DC(**{**options, "lr_img": 0.1})
    starts, orders = [], []
    fresh, randperm = method.fresh_network, torch.randperm

    def remember_network():
        network = fresh()
        starts.append({name: weight.clone() for name, weight in network.state_dict().items()})
        return network

    def remember_order(size, generator=None):
        order = randperm(size, generator=generator)
        if size == 6 and generator is None:  # the synthetic images; no class has six
            orders.append(order)
        return order

    method.fresh_network = remember_network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", remember_order)
        fit(method, data)
    assert len(starts) == 1
    assert len(orders) == 3

    network = make("convnet", data.spec, 6)
    network.load_state_dict(starts[0])
    images = start.images.detach().clone()
    velocity = torch.zeros_like(images)
    distances = []
    for update in range(2):
        if update == 1:
            for order in orders:
                gradients = torch.autograd.grad(
                    cross_entropy(network(images[order]), start.labels[order]), list(network.parameters())
                )
                with torch.no_grad():
                    for weight, gradient in zip(network.parameters(), gradients):
                        weight -= 0.1 * gradient
        wanted_images = images.clone().requires_grad_()
        total = 0
        for label in range(3):
            real = start.preprocess(data.train_set.images[data.train_set.labels == label] / 255)
            parts = (real, wanted_images[2 * label : 2 * label + 2])
            gradients = [
                torch.autograd.grad(
                    cross_entropy(network(x), torch.full((len(x),), label)),
                    list(network.parameters()),
                    create_graph=True,
                )
                for x in parts
            ]
            total = total + gradient_distance([g.detach() for g in gradients[0]], gradients[1])
        total.backward()
        velocity = 0.5 * velocity + wanted_images.grad
        images = images - 0.1 * velocity
        distances.append(float(total.detach()))
    torch.testing.assert_close(method.images.detach(), images, atol=1e-5, rtol=1e-4)
    assert float(method.terms["train/distance"]) == pytest.approx(sum(distances) / 6, rel=1e-4)


def test_an_iteration_is_one_step_of_the_trainer(dots, fit):
    method = DC(ipc=1, loops=(3, 1), batch_real=2, **SMALL)
    updates = []
    trainer_step = torch.optim.SGD.step

    def count(self, *args, **options):
        updates.append(self.param_groups[0]["params"][0] is method.images)
        return trainer_step(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", count)
        trainer = fit(method, dots(), steps=4)
    assert trainer.global_step == 4
    assert sum(updates) == 12  # of the images
    assert len(updates) - sum(updates) == 8  # of the networks, between them


@pytest.mark.parametrize(("ipc", "loops"), [(1, (1, 1)), (10, (10, 50)), (50, (50, 10))])
def test_the_authors_loops(ipc, loops):
    method = DC(ipc=ipc)
    assert (method.updates, method.epochs) == loops


def test_loops_that_nobody_published_must_be_given():
    with pytest.raises(UserError, match=r"DC: there are no published loops for ipc=7: give loops, such as \[10, 50\]"):
        DC(ipc=7)
    assert DSA(ipc=7, loops=(2, 3)).updates == 2
    with pytest.raises(UserError, match="needs an update or more"):
        DC(ipc=7, loops=(0, 3))


def test_dsa_augments_both_and_the_training(dots, fit, monkeypatch):
    seen = []

    def remember(x, strategy, seed=None, siamese=False):
        seen.append((len(x), seed, siamese))
        return x

    monkeypatch.setattr("kdzoo.dataset.gradient_matching.augment", remember)
    fit(DSA(ipc=1, loops=(2, 1), batch_real=4, **SMALL), dots())
    pairs, training = seen[:6] + seen[7:], seen[6]
    for real, synthetic in zip(pairs[::2], pairs[1::2]):
        assert real == (4, real[1], True)
        assert synthetic == (1, real[1], True)
    assert len({seed for _, seed, _ in pairs}) == 6
    assert training == (3, None, False)
