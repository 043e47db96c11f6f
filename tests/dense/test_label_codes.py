"""The codes of label-assisted distillation, pixel by pixel."""

import pytest
import torch

from kdzoo.datamodules.segmentation_data import IGNORE
from kdzoo.dense.label_codes import LEVELS, code_channels, encode


@pytest.fixture
def mask():
    mask = torch.randint(0, 21, (3, 8, 9), generator=torch.Generator().manual_seed(0))
    mask[:, 0] = IGNORE
    return mask


def test_the_fixed_code_of_voc_is_the_authors(mask):
    code = encode(mask, 21, "fixed", noise=0.0) / LEVELS
    assert code.shape == (3, 1, 8, 9)
    for place in torch.argwhere(mask >= 0).tolist():
        k = int(mask[tuple(place)])
        k = 21 if k == IGNORE else k
        assert float(code[place[0], 0, place[1], place[2]]) == pytest.approx((k - 11) / 10, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 11, 150])
def test_the_fixed_code_spans_the_same_range_for_any_number_of_classes(classes):
    ids = torch.arange(classes + 1).view(1, 1, -1)
    ids[..., -1] = IGNORE
    code = encode(ids, classes, "fixed", noise=0.0).flatten() / LEVELS
    assert float(code[-1]) == pytest.approx(1.0)
    assert float(code[0]) == pytest.approx(-(classes + 1) / (classes - 1), abs=1e-6)
    torch.testing.assert_close(code.diff(), torch.full((classes,), 2 / (classes - 1)))


def test_a_random_code_is_one_number_for_a_class_of_an_image(mask):
    torch.manual_seed(0)
    code, other = (encode(mask, 21, "random", noise=0.0) / LEVELS for _ in range(2))
    seen = []
    for image in range(3):
        for k in mask[image].unique():
            numbers = code[image, 0][mask[image] == k].unique()
            assert len(numbers) == 1
            seen.append(float(numbers))
    assert len(set(seen)) == len(seen)  # of each class and image its own, ignored pixels among them
    assert not torch.equal(code, other)  # drawn anew each time


def test_random_codes_are_normal():
    torch.manual_seed(0)
    code = encode(torch.zeros(4000, 1, 1, dtype=torch.int64), 2, "random", noise=0.0) / LEVELS
    assert float(code.mean()) == pytest.approx(0, abs=0.06)
    assert float(code.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("coding", ["random", "fixed", "one_hot"])
def test_noise_is_of_each_pixel(coding):
    torch.manual_seed(0)
    mask = torch.zeros(1, 100, 100, dtype=torch.int64)
    code = encode(mask, 3, coding, noise=0.03) / LEVELS
    assert code.shape == (1, code_channels(coding, 3), 100, 100)
    assert float(code[0, 0].std()) == pytest.approx(0.03, rel=0.05)


def test_one_hot(mask):
    code = encode(mask, 21, "one_hot", noise=0.0) / LEVELS
    assert code.shape == (3, 22, 8, 9)
    assert torch.equal(code.argmax(1), torch.where(mask == IGNORE, 21, mask))
    torch.testing.assert_close(code.sum(1), torch.ones(3, 8, 9))
    assert LEVELS == 100 / 255
