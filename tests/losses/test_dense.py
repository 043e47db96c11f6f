"""The losses of dense prediction against their definitions, written out."""

import math

import pytest
import torch

from kdzoo.losses.dense import channel_wise, pixel_cross_entropy


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise_is_a_loop_over_images_and_channels(temperature):
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    total = 0.0
    for image in range(2):
        for channel in range(3):
            p = softmax([float(v) / temperature for v in teacher[image, channel].flatten()])
            q = softmax([float(v) / temperature for v in student[image, channel].flatten()])
            total += sum(a * math.log(a / b) for a, b in zip(p, q))
    expected = temperature**2 * total / (2 * 3)
    assert float(channel_wise(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)


def test_channel_wise_is_zero_where_maps_differ_by_a_constant_of_the_channel():
    teacher = torch.randn(2, 3, 4, 5)
    assert float(channel_wise(teacher + torch.randn(2, 3, 1, 1), teacher, 4.0)) == pytest.approx(0, abs=1e-5)


def test_channel_wise_compares_half_precision_in_single():
    student, teacher = torch.randn(2, 3, 8, 8).half(), torch.randn(2, 3, 8, 8).half()
    torch.testing.assert_close(channel_wise(student, teacher, 4.0), channel_wise(student.float(), teacher.float(), 4.0))


def test_pixel_cross_entropy_is_a_loop_over_the_pixels_that_count():
    scores, mask = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    mask[0, :2] = 255
    found = []
    for image in range(2):
        for row in range(4):
            for column in range(5):
                if (label := int(mask[image, row, column])) != 255:
                    found.append(-math.log(softmax(scores[image, :, row, column].tolist())[label]))
    assert len(found) == 30
    assert float(pixel_cross_entropy(scores, mask, 255)) == pytest.approx(sum(found) / 30, rel=1e-5)


def test_pixel_cross_entropy_interpolates_smaller_scores():
    scores = torch.tensor([[[[0.0, 4.0]], [[0.0, 0.0]]]])  # [1, 2, 1, 2]
    wide = torch.tensor([[[[0.0, 1.0, 3.0, 4.0]], [[0.0] * 4]]])  # bilinear, to four columns
    mask = torch.tensor([[[0, 1, 1, 0]]])
    torch.testing.assert_close(pixel_cross_entropy(scores, mask, 255), pixel_cross_entropy(wide, mask, 255))


def test_pixel_cross_entropy_without_a_pixel_that_counts():
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_cross_entropy(scores, torch.full((1, 2, 2), 255), 255)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not scores.grad.any()
