import pytest
import torch
from torch import nn

from kdzoo.teachers.frozen import FrozenTeacher


class Net(nn.Module):
    """A network whose output tells whether it is in training mode, and which counts its blocks."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(image) * self.scale

    def features(self, image: torch.Tensor, taps: list[str]) -> dict[str, torch.Tensor]:
        return dict.fromkeys(taps, image * self.scale)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {"image": torch.randn(5, 3)}


def test_train_does_not_reach_the_teacher(batch):
    method = nn.Module()
    method.teacher = FrozenTeacher([Net(2.0)])
    method.train()
    before = {name: tensor.clone() for name, tensor in method.teacher.networks[0].state_dict().items()}
    method.teacher(batch)
    assert not method.teacher.networks[0].training
    for name, tensor in method.teacher.networks[0].state_dict().items():
        assert torch.equal(tensor, before[name])


def test_outside_parameters_and_checkpoints(batch):
    method = nn.Module()
    method.teacher = FrozenTeacher([Net(2.0), Net(4.0)])
    assert list(method.parameters()) == []
    assert method.state_dict() == {}
    assert not method.teacher(batch).requires_grad
    assert not method.teacher.features(batch, ["a"])["a"].requires_grad
    method.load_state_dict({})  # nothing is missing


def test_moves_with_the_method(batch):
    method = nn.Module()
    method.teacher = FrozenTeacher([Net(2.0)])
    method.to(torch.float64)
    assert method.teacher.networks[0].scale.dtype == torch.float64


def test_several_are_averaged(batch):
    teacher = FrozenTeacher([Net(2.0), Net(4.0)])
    image = batch["image"]
    expected = (Net(2.0).eval()(image) + Net(4.0).eval()(image)) / 2
    torch.testing.assert_close(teacher(batch), expected)
    torch.testing.assert_close(teacher.features(batch, ["a"])["a"], image * 3.0)


def test_precision_is_its_own():
    teacher = FrozenTeacher([nn.Linear(3, 2)], dtype="bfloat16")
    x = {"image": torch.randn(4, 3)}
    logits = teacher(x)
    assert logits.dtype == torch.float32
    exact = teacher.networks[0](x["image"])
    assert not torch.equal(logits, exact)  # it did run in bfloat16
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0.05)
    full = FrozenTeacher([nn.Linear(3, 2)], dtype="float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = full(x)
    assert torch.equal(inside, full.networks[0](x["image"]))
