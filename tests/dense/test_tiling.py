"""Tiles against the whole image."""

import pytest
import torch

from kdzoo.dense.imdn_network import IMDNNetwork, PlainNetwork
from kdzoo.dense.tiling import SMALLEST, exact, passes, pieces, quarters, tile_side, tiles, widened
from kdzoo.errors import UserError


def network(kind=IMDNNetwork, *arguments):
    torch.manual_seed(0)
    made = kind(2, *arguments).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(2)  # so that attention has something to say
    return made


def image(height, width):
    """Dark on one side, noisy on the other: crops have other contrasts than the whole."""
    generator = torch.Generator().manual_seed(1)
    ramp = torch.linspace(0, 1, width).expand(1, 3, height, width)
    return ramp * torch.rand(1, 3, height, width, generator=generator)


def stitched(parts, shape):
    out, written = torch.full(shape, torch.nan), torch.zeros(shape[-2:])
    for part in parts:
        if part is not None:
            (top, left, bottom, right), pixels = part
            out[..., top:bottom, left:right] = pixels
            written[top:bottom, left:right] += 1
    assert (written == 1).all()
    return out


@pytest.mark.parametrize("size", [(61, 83), (20, 90), (7, 5)])
@pytest.mark.parametrize(
    "made", [network(IMDNNetwork, 16, 2), network(IMDNNetwork, 20, 3), network(PlainNetwork, 8, 3)]
)
def test_exact_tiles_are_the_whole_image(made, size):
    whole = made(image(*size))
    parts = exact(made, image(*size), side=24)
    torch.testing.assert_close(stitched(parts, whole.shape), whole, atol=1e-5, rtol=0)


def test_the_halo_is_no_wider_than_it_must_be():
    """One pixel less is another result: the network's reach is what it says."""
    for made in network(IMDNNetwork, 16, 1), network(PlainNetwork, 8, 3):
        made = made.double()
        x = torch.zeros(1, 3, 41, 41, dtype=torch.float64)
        touched = x.clone()
        touched[..., 20, 20] = 1
        given = [torch.ones(1, 16, 1, 1, dtype=torch.float64)] * made.attentions
        changed = (made(touched, given) != made(x, given)).any(1)[0].nonzero()
        assert int((changed.amax(0) // 2 - 20).max()) == made.halo


def test_published_quarters_are_the_quarters_upscaled_alone():
    made, x = network(IMDNNetwork, 16, 2), image(101, 142)
    whole = made(x)
    found = stitched(quarters(made, x), whole.shape)
    # 50 + 32 = 82 -> 80 rows, 71 + 32 = 103 -> 100 columns; the seams at row 50, column 71.
    expected = torch.empty_like(whole)
    expected[..., :100, :142] = made(x[..., :80, :100])[..., :100, :142]
    expected[..., :100, 142:] = made(x[..., :80, 42:])[..., :100, 58:]
    expected[..., 100:, :142] = made(x[..., 21:, :100])[..., 58:, :142]
    expected[..., 100:, 142:] = made(x[..., 21:, 42:])[..., 58:, 58:]
    torch.testing.assert_close(found, expected)


def test_published_quarters_differ_from_the_whole_image_also_far_from_the_seams():
    """Each quarter has contrasts of its own; a network without attention has none, and agrees."""
    made, x = network(IMDNNetwork, 16, 2), image(128, 128)
    whole = made(x)
    difference = (stitched(quarters(made, x), whole.shape) - whole).abs()
    assert difference[..., :64, :64].max() > 1e-3
    assert difference.mean() > 1e-4
    plain = network(PlainNetwork, 8, 3)
    torch.testing.assert_close(stitched(quarters(plain, x), whole.shape), plain(x), atol=1e-5, rtol=0)


def test_small_images_in_quarters():
    made = network(IMDNNetwork, 16, 2)
    for size in (1, 1), (5, 9), (40, 30):
        stitched(quarters(made, image(*size)), (1, 3, 2 * size[0], 2 * size[1]))


def test_tiles_cover_and_halos_stay_inside():
    boxes = tiles(50, 33, 20)
    assert len(boxes) == 6
    assert boxes[-1] == (40, 20, 50, 33)
    assert widened((20, 20, 40, 33), 7, 50, 33) == ((13, 13, 47, 33), (7, 7, 27, 20))


def test_more_memory_is_larger_tiles_and_too_little_is_said():
    made = network(IMDNNetwork, 16, 2)
    assert tile_side(made, 4e8) > tile_side(made, 1e8) >= SMALLEST
    with pytest.raises(UserError, match=r"too little for one tile: give data.memory .* GB more"):
        tile_side(made, 1e6)
    with pytest.raises(UserError, match="or take data"):
        list(pieces(made, image(128, 128), "published", 1e6))


def test_steps_are_counted():
    made, x = network(IMDNNetwork, 16, 2), image(90, 70)
    memory = 4 * 1.6 * made.floats_per_pixel * (2 * made.halo + 40.5) ** 2
    for tiling, room in ("exact", memory), ("published", 1e9):
        assert len(list(pieces(made, x, tiling, room))) == passes(made, x, tiling, room)
    assert passes(made, x, "exact", memory) == 3 * 6
