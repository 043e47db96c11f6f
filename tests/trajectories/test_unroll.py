"""The unroller's modes against each other, against finite differences, and against what their names promise."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kdzoo.dataset.networks import make
from kdzoo.errors import UserError
from kdzoo.trajectories.flat import Flat, flatten
from kdzoo.trajectories.unroll import unroll

SPEC = {"channels": 1, "image_size": [8, 8], "classes": 3}


class Problem:
    """A small ConvNet on a few images in batches of four; distances to a target."""

    def __init__(self, dtype: torch.dtype = torch.float32, steps: int = 5) -> None:
        torch.manual_seed(0)
        network = make("convnet", SPEC, width=4, depth=2)
        self.start = flatten(network).to(dtype)
        self.network, self.steps = Flat(network.to(dtype)), steps
        self.target = self.start + 0.1 * torch.randn_like(self.start)
        self.images = torch.randn(6, 1, 8, 8, dtype=dtype, requires_grad=True)
        self.labels = torch.randn(6, 3, dtype=dtype).softmax(1).requires_grad_()
        self.rate = torch.tensor(0.1, dtype=dtype, requires_grad=True)
        self.rows = [torch.randperm(6)[:4] for _ in range(steps)]

    def loss(self, parameters, number, images, labels):
        rows = self.rows[number]
        return cross_entropy(self.network(parameters, images[rows]), labels[rows])

    def distance(self, mode, momentum=0.0, keep=(), last=2):
        learned = (self.images, self.labels)
        ends = unroll(self.loss, self.start, self.rate, learned, self.steps, momentum, mode, last, keep)
        return sum(((end - self.target) ** 2).sum() * (number + 1) for number, end in enumerate(ends))

    def gradients(self, mode, **options):
        distance = self.distance(mode, **options)
        return distance.detach(), torch.autograd.grad(distance, (self.images, self.labels, self.rate))


def literal(problem, momentum=0.0, keep=(), frozen=False):
    """The same by a plain loop; `frozen`: each gradient at parameters that are taken as they came."""
    parameters = problem.start.clone().requires_grad_()
    velocity, total, number = 0, 0, 0
    for step in range(problem.steps):
        at = parameters.detach().requires_grad_() if frozen else parameters
        loss = problem.loss(at, step, problem.images, problem.labels)
        velocity = momentum * velocity + torch.autograd.grad(loss, at, create_graph=True)[0]
        parameters = parameters - problem.rate * velocity
        if step + 1 in {*keep, problem.steps}:
            number += 1
            total = total + number * ((parameters - problem.target) ** 2).sum()
    return total.detach(), torch.autograd.grad(total, (problem.images, problem.labels, problem.rate))


def close(found, expected, tolerance=1e-4):
    for one, two in zip(found, expected, strict=True):
        assert (one - two).norm() <= tolerance * two.norm()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("keep", [(), (2, 4)])
def test_checkpoint_is_full_to_the_bit(momentum, keep):
    problem = Problem()
    value, full = problem.gradients("full", momentum=momentum, keep=keep)
    again, recomputed = problem.gradients("checkpoint", momentum=momentum, keep=keep)
    assert torch.equal(value, again)
    for one, two in zip(full, recomputed, strict=True):
        assert torch.equal(one, two)
    assert all(gradient.abs().max() > 0 for gradient in full)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_full_is_a_plain_loop(momentum):
    problem = Problem(torch.float64)
    value, found = problem.gradients("full", momentum=momentum, keep=(3,))
    expected_value, expected = literal(problem, momentum, keep=(3,))
    torch.testing.assert_close(value, expected_value)
    close(found, expected, 1e-10)


def test_full_agrees_with_finite_differences():
    problem = Problem(torch.float64, steps=3)
    _, found = problem.gradients("full", momentum=0.5)
    for tensor, gradient in zip((problem.images, problem.labels, problem.rate), found):
        direction = torch.randn_like(tensor)
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * 1e-6 * direction
            sides.append(problem.distance("full", momentum=0.5).item())
            with torch.no_grad():
                tensor -= sign * 1e-6 * direction
        assert (gradient * direction).sum().item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("keep", [(), (1, 3)])
def test_tesla_is_the_expanded_loss(momentum, keep):
    """|D + rate * sum g_i|^2, every g_i a function of its own batch alone."""
    problem = Problem(torch.float64)
    value, found = problem.gradients("tesla", momentum=momentum, keep=keep)
    expected_value, expected = literal(problem, momentum, keep, frozen=True)
    torch.testing.assert_close(value, expected_value)
    close(found, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_tesla_is_exact_where_gradients_do_not_depend_on_the_parameters(momentum):
    torch.manual_seed(0)
    start, target = torch.randn(2, 30)
    x, rate = torch.randn(8, 30, requires_grad=True), torch.tensor(0.1, requires_grad=True)

    def loss(parameters, number, x):
        return (x[number].sin() * parameters).sum() + (x[number] ** 3 * parameters).mean()

    found = {}
    for mode in ("full", "tesla"):
        (end,) = unroll(loss, start, rate, (x,), 8, momentum, mode)
        distance = ((end - target) ** 2).sum() / ((start - target) ** 2).sum()
        found[mode] = torch.autograd.grad(distance, (x, rate))
    close(found["tesla"], found["full"])


def test_tesla_is_exact_for_a_single_step_of_a_network():
    problem = Problem(steps=1)
    close(problem.gradients("tesla")[1], problem.gradients("full")[1])


def test_tesla_leaves_out_what_early_steps_do_to_later_gradients():
    """For several steps of a network it is another gradient, in nearly the same direction."""
    problem = Problem(torch.float64)
    (tesla, *_), (full, *_) = problem.gradients("tesla")[1], problem.gradients("full")[1]
    assert (tesla - full).norm() > 1e-3 * full.norm()
    assert torch.cosine_similarity(tesla.flatten(), full.flatten(), dim=0) > 0.9


def test_truncated_differentiates_the_last_steps():
    problem = Problem(torch.float64)
    value, found = problem.gradients("truncated", last=2)
    assert torch.equal(value, problem.gradients("full")[0])
    seen = set(torch.cat(problem.rows[-2:]).tolist())
    for row in range(6):
        assert (found[0][row].abs().max() > 0) == (row in seen)
    close(problem.gradients("truncated", last=5)[1], problem.gradients("full")[1], 1e-12)


def test_the_network_is_left_alone():
    problem = Problem()
    before = flatten(problem.network.network)
    problem.gradients("full")
    assert torch.equal(before, flatten(problem.network.network))


def test_flat_calls_are_those_of_the_network():
    network = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    expected = network(x).detach()
    flat, vector = Flat(network), flatten(network)
    assert flat.size == len(vector) == 3 * 4 + 4 + 4 + 4 + 4 * 2 + 2
    torch.testing.assert_close(flat(vector, x), expected)
    vector[0] += 1
    torch.testing.assert_close(flat(flatten(network), x), expected)  # a copy


def test_no_steps_are_an_error():
    problem = Problem()
    problem.steps = 0
    with pytest.raises(UserError, match="1 step or more"):
        problem.distance("full")
    problem.steps = 3
    with pytest.raises(UserError, match="as many at least"):
        problem.distance("truncated", last=0)
