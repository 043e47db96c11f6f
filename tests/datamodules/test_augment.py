import numpy as np
import pytest
import torch

from kdzoo.datamodules.augment import crop_box, flip_and_shift, hash32, uniform


def hash_of_one(*words):
    """The hash with Python's integers."""
    state = 0
    for word in words:
        state = ((state ^ (word % 2**32)) + 0x9E3779B9) % 2**32
        state = (state ^ (state >> 16)) * 0x21F0AAAD % 2**32
        state = (state ^ (state >> 15)) * 0x735A2D97 % 2**32
        state ^= state >> 15
    return state


def augment_one(image, index, view, flip, shift, seed):
    """Literal loop over the pixels of one image [C, H, W]."""
    draw = [(hash_of_one(seed, index, view, slot) >> 8) / 2**24 for slot in range(3)]
    down, right = (shift - int(value * (2 * shift + 1)) for value in draw[1:])
    result = np.zeros_like(image)
    height, width = image.shape[1:]
    for y in range(height):
        for x in range(width):
            row, column = y - down, x - right
            if 0 <= row < height and 0 <= column < width:
                source = width - 1 - column if flip and draw[0] < 0.5 else column
                result[:, y, x] = image[:, row, source]
    return result


@pytest.mark.parametrize(("flip", "shift"), [(True, 2), (False, 3), (True, 0), (False, 0)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_is_the_literal_loop(flip, shift, dtype):
    image = torch.randint(0, 256, (12, 2, 7, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    index, view = torch.arange(12) * 1000, torch.arange(12) % 3
    result = flip_and_shift(image, index, view, flip, shift, seed=5)
    assert result.dtype == dtype
    for row in range(12):
        expected = augment_one(image[row].numpy(), int(index[row]), int(view[row]), flip, shift, 5)
        assert np.array_equal(result[row].numpy(), expected)


def test_pixels_do_not_depend_on_the_batch():
    image = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    index, view = torch.arange(64), torch.full((64,), 3)
    whole = flip_and_shift(image, index, view, True, 2, 0)
    rows = torch.tensor([40, 3, 17])
    assert torch.equal(flip_and_shift(image[rows], index[rows], view[rows], True, 2, 0), whole[rows])
    assert not torch.equal(flip_and_shift(image, index, view + 1, True, 2, 0), whole)


def test_hash_takes_large_words():
    words = [2**32 - 1, 2**40 + 17, 0, 123456789]
    assert int(hash32(*words)) == hash_of_one(*words)


@pytest.mark.parametrize("varied", ["seed", "index", "view", "slot"])
def test_uniform_is_uniform_along_each_argument(varied):
    words = {"seed": 7, "index": 11, "view": 2, "slot": 1, varied: torch.arange(20_000)}
    values = hash32(*words.values()) if varied == "seed" else uniform(**words)
    if varied == "seed":
        values = (values >> 8).float() / 2**24
    counts = torch.histc(values, bins=100, min=0, max=1)
    assert counts.sum() == 20_000
    chi_square = ((counts - 200) ** 2 / 200).sum()  # 99 degrees of freedom: mean 99, standard deviation 14
    assert 99 - 5 * 14 < chi_square < 99 + 5 * 14
    pairs = torch.histogramdd(torch.stack([values[:-1], values[1:]], 1), bins=[10, 10], range=[0.0, 1.0, 0.0, 1.0])
    assert (pairs.hist - 200).abs().max() < 5 * 200**0.5  # neighbours are independent


def test_crop_box_stays_inside_and_has_the_area_and_shape_asked_for():
    areas, shapes = [], []
    for index in range(500):
        left, top, right, bottom = crop_box(0, index, 1, 300, 400, (0.2, 0.5))
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / (300 * 400))
        shapes.append((right - left) / (bottom - top))
    assert 0.19 < min(areas) < 0.23
    assert 0.47 < max(areas) < 0.51
    assert abs(np.mean(areas) - 0.35) < 0.02
    assert abs(np.mean(np.log(shapes))) < 0.03
    assert min(shapes) > 0.74
    assert max(shapes) < 1.35
    assert crop_box(0, 3, 1, 300, 400, (0.2, 0.5)) == crop_box(0, 3, 1, 300, 400, (0.2, 0.5))


def test_crop_box_of_impossible_shapes_is_the_central_one():
    assert crop_box(0, 0, 0, 10, 100, (1.0, 1.0)) == (43, 0, 56, 10)
    assert crop_box(0, 0, 0, 1, 1, (0.08, 0.1)) == (0, 0, 1, 1)
