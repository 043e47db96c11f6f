"""The losses of other packages, on the same numbers: same value, same gradient."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.losses.logits import kd

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def torchdistill(tmp_path_factory) -> Iterator[None]:
    """Torchdistill, installed without its dependencies into a folder that is on `sys.path` meanwhile."""
    folder: Path = tmp_path_factory.mktemp("peers")
    install = ["install", "--quiet", "--no-deps", "--target", str(folder), "torchdistill", "pyyaml"]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


def draws(count: int = 20) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    """Student logits that want a gradient, teacher logits, labels, temperature."""
    random = torch.Generator().manual_seed(0)
    for number in range(count):
        batch, classes = 2 + number % 7, 3 + number
        student, teacher = 4 * torch.randn(2, batch, classes, generator=random, dtype=torch.float64)
        label = torch.randint(0, classes, (batch,), generator=random)
        yield student.requires_grad_(), teacher, label, (1.0, 2.0, 4.0, 20.0)[number % 4]


def assert_alike(ours: Tensor, theirs: Tensor, student: Tensor) -> None:
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    # relative to the largest entry: some entries of a gradient are all but zero
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6 * gradients[1].abs().max().item())


def test_torchdistill(torchdistill):
    from torchdistill.losses.mid_level import KDLoss

    outputs = {
        f"{who}_module_{what}": value
        for who in ("student", "teacher")
        for what, value in (("path", "fc"), ("io", "output"))
    }
    for student, teacher, label, temperature in draws():
        # its alpha is the weight of the labels' term
        peer = KDLoss(**outputs, temperature=temperature, alpha=0.1, reduction="batchmean")
        theirs = peer({"fc": {"output": student}}, {"fc": {"output": teacher}}, label)
        ours = 0.1 * cross_entropy(student, label) + 0.9 * kd(student, teacher, temperature)
        assert_alike(ours, theirs, student)


class Fixed(nn.Module):
    """A 'network' of timm that gives the logits it was told, whatever the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.num_classes, self.in_chans = logits.shape[1], 3
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, image: Tensor) -> Tensor:
        return self.logits


def test_timm():
    for student, teacher, label, temperature in draws():
        task = LogitDistillationTask(
            Fixed(student),
            Fixed(teacher),
            criterion=nn.CrossEntropyLoss(),
            distill_loss_weight=0.9,
            task_loss_weight=0.1,
            temperature=temperature,
            verbose=False,
        )
        theirs = task(torch.zeros(len(label), 3, 2, 2), label)["loss"]
        ours = 0.1 * cross_entropy(student, label) + 0.9 * kd(student, teacher, temperature)
        assert_alike(ours, theirs, student)
