"""Losses on logits against literal loops, and their identities."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdzoo.errors import UserError
from kdzoo.losses.logits import (
    decoupled_kd,
    kd,
    labelled_cross_entropy,
    normalized_kd,
    one_for_all,
    relational_kd,
    soft_cross_entropy,
    standardised,
)

Draw = Callable[..., tuple[Tensor, Tensor, Tensor]]


@pytest.fixture(params=range(3))
def draw(request) -> Draw:
    def draw(batch: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(request.param)
        student, teacher = scale * torch.randn(2, batch, classes, generator=random, dtype=torch.float64)
        return student, teacher, torch.randint(0, classes, (batch,), generator=random)

    return draw


def softmax(row: np.ndarray, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def loop_kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    total = 0.0
    for row in range(len(student)):
        p, q = softmax(teacher[row], temperature), softmax(student[row], temperature)
        for i in range(len(p)):
            total += p[i] * math.log(p[i] / q[i])
    return temperature**2 * total / len(student)


def loop_dkd(student, teacher, label: list[int], alpha: float, beta: float, temperature: float) -> float:
    total = 0.0
    for row in range(len(student)):
        p, q, y = softmax(teacher[row], temperature), softmax(student[row], temperature), label[row]
        target = p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        others = 0.0
        for i in range(len(p)):
            if i != y:
                p_among, q_among = p[i] / (1 - p[y]), q[i] / (1 - q[y])
                others += p_among * math.log(p_among / q_among)
        total += alpha * target + beta * others
    return temperature**2 * total / len(student)


def loop_nkd(student, teacher, label: list[int], gamma: float, temperature: float) -> float:
    total = 0.0
    for row in range(len(student)):
        y = label[row]
        total -= softmax(teacher[row])[y] * math.log(softmax(student[row])[y])
        p, q = softmax(teacher[row], temperature), softmax(student[row], temperature)
        for i in range(len(p)):
            if i != y:
                total -= gamma * temperature**2 * p[i] / (1 - p[y]) * math.log(q[i] / (1 - q[y]))
    return total / len(student)


def loop_cross_entropy(logits: np.ndarray, label: list[int], smoothing: float) -> float:
    total, count = 0.0, 0
    for row in range(len(logits)):
        if label[row] >= 0:
            q, count = softmax(logits[row]), count + 1
            for i in range(len(q)):
                target = (1 - smoothing) * (i == label[row]) + smoothing / len(q)
                total -= target * math.log(q[i])
    return total / max(count, 1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_against_loops(draw, temperature):
    student, teacher, label = draw()
    arrays = student.numpy(), teacher.numpy()
    close = {"rel": 1e-10}
    assert kd(student, teacher, temperature).item() == pytest.approx(loop_kd(*arrays, temperature), **close)
    found = decoupled_kd(student, teacher, label, 1.5, 8.0, temperature).item()
    assert found == pytest.approx(loop_dkd(*arrays, label.tolist(), 1.5, 8.0, temperature), **close)
    found = normalized_kd(student, teacher, label, 1.5, temperature).item()
    assert found == pytest.approx(loop_nkd(*arrays, label.tolist(), 1.5, temperature), **close)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_against_a_loop(draw, smoothing):
    logits, _, label = draw()
    expected = loop_cross_entropy(logits.numpy(), label.tolist(), smoothing)
    assert labelled_cross_entropy(logits, label, smoothing).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(
        labelled_cross_entropy(logits, label, smoothing), cross_entropy(logits, label, label_smoothing=smoothing)
    )
    label[1::2] = -1
    expected = loop_cross_entropy(logits.numpy(), label.tolist(), smoothing)
    assert labelled_cross_entropy(logits, label, smoothing).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_is_classical_with_its_weights(draw, temperature):
    student, teacher, label = draw()
    beta = 1 - (teacher / temperature).softmax(1).gather(1, label[:, None])[:, 0]
    student.requires_grad_()
    losses = kd(student, teacher, temperature), decoupled_kd(student, teacher, label, 1.0, beta, temperature)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in losses]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_alike(draw):
    """At equal logits the distances are zero, and so is the gradient."""
    _, teacher, label = draw()
    student = (teacher + 7.0).requires_grad_()  # logits are known up to a constant
    for loss in (kd(student, teacher, 2.0), decoupled_kd(student, teacher, label, 1.0, 8.0, 2.0)):
        assert loss.item() == pytest.approx(0.0, abs=1e-12)
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.abs().max() < 1e-12


def test_two_classes(draw):
    """With two classes one alone is left: nothing to compare among the others."""
    student, teacher, label = draw(classes=2)
    beta_alone = decoupled_kd(student, teacher, label, 0.0, 8.0, 4.0)
    assert beta_alone.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(decoupled_kd(student, teacher, label, 1.0, 8.0, 4.0), kd(student, teacher, 4.0))
    target = -(teacher.softmax(1) * student.log_softmax(1)).gather(1, label[:, None]).mean()
    torch.testing.assert_close(normalized_kd(student, teacher, label, 1.5, 1.0), target)


def test_without_label_the_teacher_chooses(draw):
    student, teacher, label = draw()
    label[::2] = -1
    chosen = torch.where(label < 0, teacher.argmax(1), label)
    for loss in (
        lambda y: decoupled_kd(student, teacher, y, 1.0, 8.0, 4.0),
        lambda y: normalized_kd(student, teacher, y, 1.5, 1.0),
    ):
        assert torch.equal(loss(label), loss(chosen))


def test_no_label_at_all():
    logits = torch.randn(4, 3, requires_grad=True)
    for smoothing in (0.0, 0.1):
        loss = labelled_cross_entropy(logits, torch.full((4,), -1), smoothing)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient, torch.zeros_like(logits))


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kd": lambda student, teacher, label: kd(student, teacher, 4.0),
    "kd_sharp": lambda student, teacher, label: kd(student, teacher, 1.0),
    "dkd": lambda student, teacher, label: decoupled_kd(student, teacher, label, 1.0, 8.0, 4.0),
    "dkd_sharp": lambda student, teacher, label: decoupled_kd(student, teacher, label, 1.0, 8.0, 1.0),
    "nkd": lambda student, teacher, label: normalized_kd(student, teacher, label, 1.5, 1.0),
    "ce": lambda student, teacher, label: labelled_cross_entropy(student, label, 0.1),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_extreme_logits(name, dtype):
    big = 1e4
    rows = [[big, -big, 0, 0], [-big, big, big, -big], [big] * 4, [0, 0, 0, -big]]
    student = torch.tensor(rows, dtype=dtype, requires_grad=True)
    for order in ([0, 1, 2, 3], [3, 2, 0, 1]):
        teacher = torch.tensor(rows, dtype=dtype)[order]
        for label in torch.tensor([[0, 1, 2, 3], [1, 0, 3, 0], [-1, -1, 0, -1]]):
            loss = LOSSES[name](student, teacher, label)
            assert loss.dtype == torch.promote_types(dtype, torch.float32)
            (gradient,) = torch.autograd.grad(loss, student)
            assert loss.isfinite(), (order, label)
            assert gradient.isfinite().all(), (order, label)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name):
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    label = torch.tensor([2, 0, -1])
    assert torch.autograd.gradcheck(lambda logits: LOSSES[name](logits, teacher, label), student.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_mean_over_the_batch(draw, name):
    student, teacher, label = draw()
    rows = [LOSSES[name](student[i : i + 1], teacher[i : i + 1], label[i : i + 1]) for i in range(len(label))]
    torch.testing.assert_close(LOSSES[name](student, teacher, label), torch.stack(rows).mean())


def test_half_precision_is_raised(draw):
    student, teacher, label = (tensor.half() if tensor.is_floating_point() else tensor for tensor in draw())
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(student, teacher, label), loss(student.float(), teacher.float(), label))


def test_relational_against_correlations_of_numpy(draw):
    student, teacher, _ = draw()
    p, q = ((z / 2).softmax(1).numpy() for z in (teacher, student))
    inter = 1 - np.mean([np.corrcoef(p[i], q[i])[0, 1] for i in range(len(p))])
    intra = 1 - np.mean([np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(p.shape[1])])
    found = relational_kd(student, teacher, beta=1.5, gamma=0.5, temperature=2.0).item()
    assert found == pytest.approx(4 * (1.5 * inter + 0.5 * intra), rel=1e-8)
    assert relational_kd(teacher, teacher, 1.0, 1.0, 1.0).item() == pytest.approx(0, abs=1e-8)
    with pytest.raises(UserError, match="a single sample: batch_size >= 2"):
        relational_kd(student[:1], teacher[:1], 1.0, 1.0, 1.0)


def test_standardised_is_blind_to_shift_and_scale(draw):
    student, _, _ = draw()
    z = student.numpy()
    expected = (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(standardised(student).numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(standardised(5 * student + 3), standardised(student), rtol=1e-6, atol=1e-6)


def test_soft_cross_entropy_leaves_rows_of_zeros_out(draw):
    student, teacher, _ = draw()
    target = teacher.softmax(1)
    torch.testing.assert_close(soft_cross_entropy(student, target), cross_entropy(student, target))
    target[::2] = 0
    torch.testing.assert_close(soft_cross_entropy(student, target), cross_entropy(student[1::2], target[1::2]))
    assert soft_cross_entropy(student, 0 * target) == 0


def test_one_for_all_with_eps_one_is_cross_entropy_to_the_teacher(draw):
    student, teacher, label = draw()
    expected = cross_entropy(student, teacher.softmax(1))
    torch.testing.assert_close(one_for_all(student, teacher, label, eps=1.0), expected, rtol=0, atol=1e-6)


def test_one_for_all_against_a_loop(draw):
    student, teacher, label = draw()
    total = 0.0
    for row in range(len(student)):
        p, q, y = softmax(teacher.numpy()[row]), softmax(student.numpy()[row]), int(label[row])
        for c in range(len(p)):
            total -= ((p[c] + (c == y)) ** 1.5 - (c == y)) * math.log(q[c])
    assert one_for_all(student, teacher, label, eps=1.5).item() == pytest.approx(total / len(student), rel=1e-10)
    unknown = torch.full_like(label, -1)
    chosen = one_for_all(student, teacher, teacher.argmax(1), eps=1.5)
    torch.testing.assert_close(one_for_all(student, teacher, unknown, eps=1.5), chosen)
