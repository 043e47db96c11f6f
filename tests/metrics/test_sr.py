"""Luma, PSNR and SSIM against worked examples."""

import math

import pytest
import torch

from kdzoo.metrics.sr import crops_figure, luma, psnr_y, shaved, ssim_y, telling_crop


def picture(*colour, side=20):
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, side, side) / 255


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81),
        ((0, 255, 0), 145),
        ((0, 0, 255), 41),
        ((1, 2, 3), 18),
    ],
)
def test_luma_is_matlabs(colour, expected):
    """rgb2ycbcr of uint8 images: 16 + 65.481 R + 128.553 G + 24.966 B, rounded."""
    assert (luma(picture(*colour)) == expected).all()


def test_images_are_rounded_and_clamped_first():
    assert (luma(picture(254.6, 254.6, 254.6)) == 235).all()
    assert (luma(picture(-40.0, 300.0, 0.4)) == 145).all()


def test_psnr_of_a_worked_example():
    """Grey 100 against 102: luma 101.88 -> 102 and 103.6 -> 104, so an error of 2 everywhere."""
    output, truth = picture(100.0, 100.0, 100.0), picture(102.0, 102.0, 102.0)
    assert psnr_y(output, truth, 2).tolist() == pytest.approx([10 * math.log10(255**2 / 4)], abs=1e-4)


def test_the_border_does_not_count():
    truth = torch.rand(2, 3, 20, 24)
    output = truth.clone()
    output[..., :3, :] = output[..., -3:, :] = output[..., :3] = output[..., -3:] = 0
    assert psnr_y(output, truth, 3).tolist() == [math.inf, math.inf]
    assert ssim_y(output, truth, 3).tolist() == pytest.approx([1, 1])
    assert torch.isfinite(psnr_y(output, truth, 2)).all()


def test_every_image_has_a_score_of_its_own():
    truth, output = torch.rand(3, 3, 30, 30), torch.rand(3, 3, 30, 30)
    for score in psnr_y, ssim_y:
        together = score(output, truth, 2)
        alone = torch.cat([score(output[i : i + 1], truth[i : i + 1], 2) for i in range(3)])
        torch.testing.assert_close(together, alone)


def test_ssim_is_its_equation():
    """One window: an 11 x 11 luma, weighted by a Gaussian of standard deviation 1.5."""
    torch.manual_seed(0)
    truth, output = torch.rand(1, 3, 15, 15), torch.rand(1, 3, 15, 15)
    x, y = (shaved(luma(image), 2)[0, 0].double() for image in (output, truth))
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    g = torch.exp(-(offsets**2) / (2 * 1.5**2))
    w = torch.outer(g, g) / g.sum() ** 2
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim_y(output, truth, 2).item() == pytest.approx(float(expected), abs=1e-5)


def test_the_crop_is_where_interpolation_errs():
    truth = torch.zeros(3, 200, 300)
    interpolated = truth.clone()
    interpolated[:, 120:150, 210:240] = 1
    rows, columns = telling_crop(interpolated, truth)
    assert rows.start <= 120 < 150 <= rows.stop
    assert columns.start <= 210 < 240 <= columns.stop
    assert truth[:, rows, columns].shape == (3, 96, 96)


def test_the_figure_draws():
    crop = torch.rand(3, 10, 12)
    figure = crops_figure([(crop, crop, crop)] * 2, [(30.0, 31.5), (28.0, 29.0)])
    assert [ax.get_title() for ax in figure.axes[:3]] == ["bicubic, 30.00 dB", "output, 31.50 dB", "truth"]
