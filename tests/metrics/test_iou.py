"""Intersection over union against sets of pixels, and what the pictures show."""

import numpy as np
import pytest
import torch

from kdzoo.metrics.segmentation import MeanIoU, class_iou, iou_figure, masks_figure, overlay, palette


def test_iou_is_that_of_sets_of_pixels():
    generator = torch.Generator().manual_seed(0)
    truth, found = torch.randint(0, 4, (2, 3, 6, 7), generator=generator)
    truth[0, :2] = 255
    metric = MeanIoU(5, ignore_index=255)
    for batch in range(3):  # one image at a time
        metric.update(found[batch : batch + 1], truth[batch : batch + 1])
    places = [tuple(place) for place in torch.argwhere(truth != 255).tolist()]
    expected = []
    for label in range(4):  # nothing is or is taken for class 4
        there = {place for place in places if truth[place] == label}
        taken = {place for place in places if found[place] == label}
        expected.append(100 * len(there & taken) / len(there | taken))
    counts = super(MeanIoU, metric).compute()
    assert class_iou(counts)[:4].tolist() == pytest.approx(expected)
    assert class_iou(counts)[4].isnan()
    assert float(metric.compute()) == pytest.approx(sum(expected) / 4)


def test_the_palette_is_pascals():
    assert palette(21)[[0, 1, 2, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert len(np.unique(palette(256), axis=0)) == 256


def test_an_overlay_leaves_ground_and_ignored_pixels_clear():
    image = torch.rand(3, 2, 3)
    mask = torch.tensor([[0, 1, 255], [2, 0, 0]])
    drawn = overlay(image, mask, classes=3)
    pixels = image.permute(1, 2, 0).double().numpy()
    changed = (drawn != pixels).any(-1)
    assert changed.tolist() == [[False, True, False], [True, False, False]]
    np.testing.assert_allclose(drawn[0, 1], 0.35 * pixels[0, 1] + 0.65 * palette(2)[1] / 255)


def test_figures_name_what_they_show():
    seen = [(torch.rand(3, 8, 8), torch.ones(8, 8).long(), torch.zeros(8, 8).long())] * 2
    figure = masks_figure(seen, ["ground", "cat", "dog"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cat"]
    (ax,) = iou_figure(torch.tensor([10.0, float("nan"), 90.0]), ["ground", "cat", "dog"]).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dog", "ground"]
    assert [bar.get_width() for bar in ax.patches] == [90.0, 10.0]
