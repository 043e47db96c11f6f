import pytest
import torch
from torch import nn

from kdzoo.errors import UserError
from kdzoo.optim import Optim


def rates(optim: Optim, steps: int) -> list[float]:
    """The learning rate of every step, as the optimizer sees it."""
    configured = optim.configure([nn.Parameter(torch.zeros(1))], steps)
    optimizer = configured["optimizer"]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        configured["lr_scheduler"]["scheduler"].step()
    return seen


def test_step_decays_at_the_milestones():
    seen = rates(Optim(lr=1.0, milestones=(0.5, 0.75)), steps=8)
    assert seen == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_with_warmup_against_the_formula():
    seen = rates(Optim(lr=2.0, schedule="cosine", warmup=0.25), steps=8)
    assert seen[:2] == pytest.approx([1.0, 2.0])  # rises over the first two steps
    assert max(seen) == pytest.approx(2.0)
    assert seen[1:] == sorted(seen[1:], reverse=True)
    assert seen[-1] < 0.1


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_long_and_short_runs_are_one_schedule(schedule):
    short, long = rates(Optim(schedule=schedule), 20), rates(Optim(schedule=schedule), 200)
    assert short == pytest.approx(long[::10])


def test_the_default_is_nesterov_sgd():
    optimizer = Optim().configure([nn.Parameter(torch.zeros(1))], 10)["optimizer"]
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.05, 0.9, 5e-4, True)


def test_any_torch_optimizer_and_scheduler():
    optim = Optim(
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.5),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.5),
    )
    configured = optim.configure([nn.Parameter(torch.zeros(1))], float("inf"))
    assert isinstance(configured["optimizer"], torch.optim.AdamW)
    assert isinstance(configured["lr_scheduler"], torch.optim.lr_scheduler.StepLR)


def test_a_group_keeps_its_own_rate_under_the_schedule():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}]
    configured = Optim(lr=1.0, milestones=(0.5,)).configure(groups, 2)
    configured["optimizer"].step()
    configured["lr_scheduler"]["scheduler"].step()
    assert [g["lr"] for g in configured["optimizer"].param_groups] == pytest.approx([0.1, 0.05])


def test_a_run_without_an_end_has_no_schedule():
    with pytest.raises(UserError, match="length of the run"):
        Optim().configure([nn.Parameter(torch.zeros(1))], float("inf"))


def test_adamw_by_name():
    weights, bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optim = Optim(name="adamw", lr=0.5, weight_decay=0.1, betas=(0.8, 0.9), schedule="constant")
    groups = [{"params": [weights]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = optim.configure(groups, 10)["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups] == [
        (0.5, 0.1, (0.8, 0.9)),
        (0.5, 0.0, (0.8, 0.9)),
    ]
