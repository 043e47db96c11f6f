"""Differentiable augmentation against loops over pixels, and what siamese means."""

import math

import pytest
import torch

from kdzoo.dataset.augment import DRAWS, DSA, OPERATIONS, apply, augment, draw
from kdzoo.errors import UserError

torch.manual_seed(0)
X = torch.randn(3, 2, 8, 10, dtype=torch.float64)  # [B, C, H, W]


def pixel(image, channel, y, x) -> float:
    """A pixel, zero outside."""
    inside = 0 <= y < image.shape[1] and 0 <= x < image.shape[2]
    return float(image[channel, y, x]) if inside else 0.0


def bilinear(image, channel, y, x) -> float:
    top, left = math.floor(y), math.floor(x)
    dy, dx = y - top, x - left
    return (
        (1 - dy) * (1 - dx) * pixel(image, channel, top, left)
        + (1 - dy) * dx * pixel(image, channel, top, left + 1)
        + dy * (1 - dx) * pixel(image, channel, top + 1, left)
        + dy * dx * pixel(image, channel, top + 1, left + 1)
    )


def literal(name: str, image, u: list[float]):
    """One image [C, H, W], changed by the uniform draws u, pixel by pixel."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    if name == "color":
        bright = image + (u[0] - 0.5)
        for y in range(height):
            for x in range(width):
                grey = sum(float(bright[c, y, x]) for c in range(channels)) / channels
                for c in range(channels):
                    out[c, y, x] = (bright[c, y, x] - grey) * 2 * u[1] + grey
        return (out - out.mean()) * (u[2] + 0.5) + out.mean()
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                if name == "flip":
                    out[c, y, x] = image[c, y, width - 1 - x if u[0] < 0.5 else x]
                if name == "crop":  # by -1, 0 or 1: an eighth of 8 and of 10
                    out[c, y, x] = pixel(image, c, y + int(3 * u[0]) - 1, x + int(3 * u[1]) - 1)
                if name == "cutout":  # 4 x 5 pixels; the centre is anywhere on the 9 lines, or the 10 columns
                    rows = range(int(9 * u[0]) - 2, int(9 * u[0]) + 2)
                    columns = range(int(10 * u[1]) - 2, int(10 * u[1]) + 3)
                    out[c, y, x] = 0 if y in rows and x in columns else image[c, y, x]
                if name in ("scale", "rotate"):
                    v, w = (2 * y + 1) / height - 1, (2 * x + 1) / width - 1  # of the pixel's centre, in (-1, 1)
                    if name == "scale":
                        low = 1 / 1.2
                        v, w = v * (low + u[0] * (1.2 - low)), w * (low + u[1] * (1.2 - low))
                    else:
                        angle = math.radians((u[0] - 0.5) * 30)
                        v, w = (
                            math.sin(angle) * w + math.cos(angle) * v,
                            math.cos(angle) * w - math.sin(angle) * v,
                        )
                    out[c, y, x] = bilinear(image, c, ((v + 1) * height - 1) / 2, ((w + 1) * width - 1) / 2)
    return out


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_their_loops(name):
    for seed in range(4):
        ((drawn, numbers),) = draw(3, name, seed)
        assert drawn == name
        assert numbers.shape == (DRAWS[name], 3, 1, 1, 1)
        expected = torch.stack([literal(name, image, numbers[:, i].flatten().tolist()) for i, image in enumerate(X)])
        torch.testing.assert_close(apply(X, [(name, numbers)]), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_pass_through(name):
    x = X[:2, :, :5, :4].clone().requires_grad_()
    drawn = draw(2, name, seed=1)
    assert torch.autograd.gradcheck(lambda x: apply(x, drawn), x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_siamese_is_the_same_for_both_batches_and_all_images(name):
    for seed in range(3):
        real = augment(X, name, seed, siamese=True)
        synthetic = augment(X[1:2], name, seed, siamese=True)
        torch.testing.assert_close(real[1:2], synthetic, atol=1e-12, rtol=0)


def test_otherwise_every_image_has_its_own():
    same = X[:1].expand(3, -1, -1, -1)
    changed = augment(same, "crop_color", seed=0, mode="all")
    assert not torch.equal(changed[0], changed[1])


def test_a_seed_or_the_global_generator():
    assert torch.equal(augment(X, seed=5), augment(X, seed=5))
    torch.manual_seed(3)
    first, second = augment(X), augment(X)
    torch.manual_seed(3)
    assert torch.equal(first, augment(X))
    assert not torch.equal(first, second)


def test_one_operation_or_all():
    names = {drawn for seed in range(60) for drawn, _ in draw(2, DSA, seed)}
    assert names == set(OPERATIONS)
    assert all(len(draw(2, DSA, seed)) == 1 for seed in range(5))
    assert [name for name, _ in draw(2, "flip_crop", 0, mode="all")] == ["flip", "crop"]


def test_none_changes_nothing():
    assert augment(X, "none") is X


def test_batched_by_vmap():
    stacked = torch.randn(4, 3, 2, 8, 8)
    for name in OPERATIONS:
        drawn = draw(3, name, seed=2)
        batched = torch.func.vmap(lambda x, drawn=drawn: apply(x, drawn))(stacked)
        torch.testing.assert_close(batched, torch.stack([apply(x, drawn) for x in stacked]))


def test_unknown_operations_are_named():
    with pytest.raises(UserError, match=r"'crob' in the augmentation 'flip_crob' is unknown. Near: crop. Give some of"):
        augment(X, "flip_crob")
