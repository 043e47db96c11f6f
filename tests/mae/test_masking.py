"""Masks and patches against literal loops."""

import pytest
import torch

from kdzoo.errors import UserError
from kdzoo.mae.masking import count_visible, draw_mask, patchify, take, unpatchify


def test_the_papers_counts():
    assert [count_visible(196, ratio) for ratio in (0.75, 0.9, 0.95, 0.98)] == [49, 20, 10, 4]
    assert [count_visible(49, ratio) for ratio in (0.75, 0.9)] == [12, 5]


@pytest.mark.parametrize("ratio", [0.999, 1.0, 0.0, -0.5, 1.5])
def test_something_is_visible_and_something_hidden(ratio):
    with pytest.raises(UserError, match=rf"mask_ratio={ratio} leaves .* at least one"):
        count_visible(49, ratio)


def test_a_mask_is_a_function_of_seed_index_and_view():
    index, view = torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2])
    visible, masked = draw_mask(3, index, view, 49, 12)
    assert visible.shape == (6, 12)
    assert masked.shape == (6, 37)
    for row in range(6):  # every patch once, and the same whatever else is in the batch
        assert sorted([*visible[row].tolist(), *masked[row].tolist()]) == list(range(49))
        alone, _ = draw_mask(3, index[row : row + 1], view[row : row + 1], 49, 12)
        assert torch.equal(alone[0], visible[row])
    for other in (draw_mask(4, index, view, 49, 12), draw_mask(3, index + 9, view, 49, 12)):
        assert not torch.equal(other[0], visible)
    assert not torch.equal(draw_mask(3, index, view + 1, 49, 12)[0], visible)


def test_every_patch_is_visible_equally_often():
    visible, _ = draw_mask(0, torch.arange(4000), torch.zeros(4000, dtype=torch.int64), 49, 12)
    share = torch.bincount(visible.flatten(), minlength=49) / 4000
    assert (share - 12 / 49).abs().max() < 0.03  # four standard deviations


def test_patchify_against_a_loop():
    image = torch.rand(2, 3, 6, 8)
    patches = patchify(image, (3, 2))  # a grid of 2 x 4
    for b in range(2):
        for row in range(2):
            for column in range(4):
                cut = image[b, :, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
                expected = [cut[c, y, x] for y in range(3) for x in range(2) for c in range(3)]
                assert torch.equal(patches[b, 4 * row + column], torch.stack(expected))
    assert torch.equal(unpatchify(patches, (3, 2), (2, 4)), image)


def test_take():
    tokens, ids = torch.rand(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(take(tokens, ids), torch.stack([tokens[0, [4, 0]], tokens[1, [1, 1]]]))
