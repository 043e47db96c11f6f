"""GSAM's step against the same in plain numbers."""

import numpy as np
import pytest
import torch
from torch import nn

from kdzoo.errors import UserError
from kdzoo.trajectories.sharpness import GSAM

# L(w) = sum_k c_k (x_k . w)^4 + b . w, its gradient by hand.
RNG = np.random.default_rng(0)
X, C, B, START = RNG.normal(size=(5, 4)), RNG.uniform(0.1, 1, 5), RNG.normal(size=4), RNG.normal(size=4)


def gradient(w: np.ndarray) -> np.ndarray:
    return sum(4 * c * (x @ w) ** 3 * x for c, x in zip(C, X)) + B


def literal(steps: int, lr: float, momentum: float, decay: float, rho: float, alpha: float, adaptive: bool):
    w, buffer = START.copy(), None
    for _ in range(steps):
        g = gradient(w)
        length = np.sqrt(sum((abs(w_i) * g_i if adaptive else g_i) ** 2 for w_i, g_i in zip(w, g)))
        e = np.array([rho * (w_i**2 if adaptive else 1) * g_i / (length + 1e-12) for w_i, g_i in zip(w, g)])
        h = gradient(w + e)
        cosine = (g @ h) / (np.linalg.norm(g) * np.linalg.norm(h) + 1e-12)
        orthogonal = g - cosine * np.linalg.norm(g) * h / (np.linalg.norm(h) + 1e-12)
        direction = h - alpha * orthogonal + decay * w
        buffer = direction if buffer is None else momentum * buffer + direction
        w = w - lr * buffer
    return w


class Quartic(nn.Module):
    """The same as a module of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor(part)) for part in (START[:1], START[1:]))

    def forward(self) -> torch.Tensor:
        w = torch.cat([self.first, self.second])
        return (torch.tensor(C) * (torch.tensor(X) @ w) ** 4).sum() + torch.tensor(B) @ w


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_is_the_literal_one(adaptive, alpha, momentum):
    module = Quartic()
    base = torch.optim.SGD(module.parameters(), lr=0.001, momentum=momentum, weight_decay=0.01)
    optimizer = GSAM(base, module, rho=0.2, alpha=alpha, adaptive=adaptive)

    def closure():
        optimizer.zero_grad()
        loss = module()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(4)]
    found = torch.cat([module.first, module.second]).detach().numpy()
    np.testing.assert_allclose(found, literal(4, 0.001, momentum, 0.01, 0.2, alpha, adaptive), rtol=1e-12)
    plain = literal(4, 0.001, momentum, 0.01, 0.0, 0.0, adaptive)
    assert np.abs(found - plain).max() > 1e-6
    assert losses[0] == pytest.approx(sum(c * (x @ START) ** 4 for c, x in zip(C, X)) + B @ START)


def test_no_radius_is_the_wrapped_optimizer():
    first, second = Quartic(), Quartic()
    optimizer = GSAM(torch.optim.SGD(first.parameters(), lr=0.001), first, rho=0.0)
    plain = torch.optim.SGD(second.parameters(), lr=0.001)
    for module, each in ((first, optimizer), (second, plain)):

        def closure(module=module, each=each):
            each.zero_grad()
            loss = module()
            loss.backward()
            return loss

        each.step(closure)
    assert torch.equal(first.second, second.second)


def test_running_statistics_are_those_of_the_first_pass():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    expected = nn.BatchNorm1d(4)
    expected(network[0](x))
    optimizer = GSAM(torch.optim.SGD(network.parameters(), lr=0.1), network, rho=1.0)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        calls.append(network[1].running_mean.clone())
        return loss

    optimizer.step(closure)
    assert len(calls) == 2
    torch.testing.assert_close(network[1].running_mean, expected.running_mean)
    assert network[1].num_batches_tracked == 1
    assert network[1].momentum == 0.1
    network(x)
    assert network[1].num_batches_tracked == 2


def test_schedules_and_states_are_those_of_the_wrapped_optimizer():
    module = Quartic()
    optimizer = GSAM(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), module)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure():
        optimizer.zero_grad()
        loss = module()
        loss.backward()
        return loss

    optimizer.step(closure)
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.05
    other = GSAM(torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), module)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.05
    assert other.param_groups is other.base.param_groups


def test_bad_arguments():
    module = Quartic()
    base = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(UserError, match="rho=-1"):
        GSAM(base, module, rho=-1)
    with pytest.raises(UserError, match="closure"):
        GSAM(base, module).step()
