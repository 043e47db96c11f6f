"""Losses on features."""

import math

import pytest
import torch

from kdzoo.errors import UserError
from kdzoo.losses.features import (
    attention_transfer,
    class_attention,
    gaussian_nll,
    hierarchical_context,
    hint,
    neuron_selectivity,
    noise_contrast,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    similarity_preserving,
)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4), (2, 3)])
def test_hint_against_a_loop(shape):
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist()):
        total += (s - t) ** 2
    assert hint(student, teacher).item() == pytest.approx(total / student.numel(), rel=1e-12)


def test_hint_gradient():
    student, teacher = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(hint(student, teacher), student)
    torch.testing.assert_close(gradient, 2 * (student.detach() - teacher) / student.numel())
    assert hint(teacher, teacher).item() == 0.0


def test_shapes_must_agree():
    with pytest.warns(UserWarning, match="target size .* is different to the input size"):  # torch would broadcast
        hint(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 4, 4))


# ------------------------------------------------------------------------------------- against loops written out


def unit(values: torch.Tensor) -> torch.Tensor:
    return values / values.square().sum().sqrt()


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 4, 6, 6, dtype=torch.float64), torch.randn(3, 5, 3, 3, dtype=torch.float64)


def test_attention_transfer_against_a_loop(maps):
    student, teacher = maps
    pooled = student.reshape(3, 4, 3, 2, 3, 2).mean((3, 5))  # the larger map is averaged down
    total = 0.0
    for i in range(3):
        q_s, q_t = (unit((f[i] ** 2).mean(0).flatten()) for f in (pooled, teacher))
        total += float(((q_s - q_t) ** 2).sum())
    assert attention_transfer(student, teacher).item() == pytest.approx(total / 3 / 9, rel=1e-12)
    assert attention_transfer(teacher[:, [4, 0, 1, 2, 3]], 2 * teacher).item() == pytest.approx(0, abs=1e-12)


def test_similarity_preserving_against_a_loop(maps):
    student, teacher = maps
    total = 0.0
    rows = [[[float((f[i] * f[j]).sum()) for j in range(3)] for i in range(3)] for f in maps]
    for i in range(3):
        g_s, g_t = (unit(torch.tensor(side[i], dtype=torch.float64)) for side in rows)
        total += float(((g_s - g_t) ** 2).sum())
    assert similarity_preserving(student, teacher).item() == pytest.approx(total / 9, rel=1e-10)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_relations_against_loops():
    torch.manual_seed(0)
    sides = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    distances, angles = [], []
    for f in sides:
        d = [[float((f[i] - f[j]).norm()) for j in range(4)] for i in range(4)]
        mean = sum(map(sum, d)) / 12
        distances.append([value / mean for row in d for value in row])
        cosines = []
        for i in range(4):
            for j in range(4):
                for k in range(4):
                    known = i not in (j, k)
                    cosines.append(float(unit(f[j] - f[i]) @ unit(f[k] - f[i])) if known else 0.0)
        angles.append(cosines)
    expected = sum(huber(a - b) for a, b in zip(*distances)) / 16
    assert relational_distance(*sides).item() == pytest.approx(expected, rel=1e-10)
    expected = sum(huber(a - b) for a, b in zip(*angles)) / 64
    assert relational_angle(*sides).item() == pytest.approx(expected, rel=1e-10)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    moved = 3 * sides[0] @ rotation + 1  # neither scale, rotation nor shift matters
    assert relational_distance(moved, sides[0]).item() == pytest.approx(0, abs=1e-12)
    assert relational_angle(moved, sides[0]).item() == pytest.approx(0, abs=1e-12)


def test_relations_of_equal_samples_have_a_gradient():
    feature = torch.ones(3, 4, requires_grad=True)
    other = torch.randn(3, 4)
    relational_angle(feature, other).backward()
    assert torch.isfinite(feature.grad).all()
    feature = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    relational_distance(feature, other).backward()
    assert torch.isfinite(feature.grad).all()


@pytest.mark.parametrize("loss", [relational_distance, relational_angle, similarity_preserving, probabilistic_transfer])
def test_one_sample_has_no_relations(loss):
    with pytest.raises(UserError, match="a single sample: batch_size >= 2"):
        loss(torch.randn(1, 3), torch.randn(1, 3))


def test_probabilistic_transfer_against_a_loop():
    torch.manual_seed(0)
    sides = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    p = []
    for f in sides:
        cosines = [[(float(unit(f[i]) @ unit(f[j])) + 1) / 2 for j in range(4)] for i in range(4)]
        p.append([[value / sum(row) for value in row] for row in cosines])
    expected = sum(p[1][i][j] * math.log(p[1][i][j] / p[0][i][j]) for i in range(4) for j in range(4)) / 16
    assert probabilistic_transfer(*sides).item() == pytest.approx(expected, rel=1e-4)


def test_neuron_selectivity_is_a_discrepancy(maps):
    teacher = maps[1]
    assert neuron_selectivity(teacher[:, [4, 2, 0, 1, 3]], 3 * teacher).item() == pytest.approx(0, abs=1e-12)
    student = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    total = 0.0
    for b in range(3):
        s, t = ([unit(channel.flatten()) for channel in f[b]] for f in (student, teacher))
        for left, right, sign in ((t, t, 1), (s, s, 1), (s, t, -2)):
            total += sign * sum(float(x @ y) ** 2 for x in left for y in right) / (len(left) * len(right))
    assert neuron_selectivity(student, teacher).item() == pytest.approx(total / 3, rel=1e-10)


def test_gaussian_nll_is_torchs():
    mean, target = torch.randn(2, 3, 4, 5, 5)
    variance = torch.rand(4, 1, 1) + 0.1
    expected = torch.nn.functional.gaussian_nll_loss(mean, target, variance.expand_as(mean))
    torch.testing.assert_close(gaussian_nll(mean, target, variance), expected)


def test_hierarchical_context_weighs_its_levels():
    student, teacher = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    difference = student - teacher
    grids = [difference.reshape(2, 3, g, 8 // g, g, 8 // g).mean((3, 5)) for g in (8, 4, 2, 1)]
    expected = sum(w * float((g**2).mean()) for w, g in zip((1, 0.5, 0.25, 0.125), grids)) / 1.875
    assert hierarchical_context(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    pooled = torch.randn(2, 2, 3, 1, 1)
    torch.testing.assert_close(hierarchical_context(*pooled), ((pooled[0] - pooled[1]) ** 2).mean())


def test_class_attention_against_a_loop():
    student, teacher = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    total = 0.0
    for i in range(2):
        for c in range(3):
            s = unit(student[i, c].reshape(2, 2, 2, 2).mean((1, 3)).flatten())
            t = unit(teacher[i, c].reshape(2, 3, 2, 3).mean((1, 3)).flatten())
            total += float(((s - t) ** 2).sum())
    assert class_attention(student, teacher).item() == pytest.approx(total / (2 * 3 * 4), rel=1e-12)


def test_noise_contrast_against_a_loop():
    scores = torch.rand(3, 1 + 4, dtype=torch.float64)
    noise, total = 4 / 50, 0.0
    for row in scores.tolist():
        total -= math.log(row[0] / (row[0] + noise))
        total -= sum(math.log(noise / (value + noise)) for value in row[1:])
    assert noise_contrast(scores, samples=50).item() == pytest.approx(total / 3, rel=1e-5)
