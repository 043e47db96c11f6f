"""Encodings and fields against literal references."""

import math

import pytest
import torch
from torch.nn.functional import grid_sample

from kdzoo.errors import UserError
from kdzoo.nerf.encodings import PRIMES, HashGrid, frequencies, interpolate, spherical_harmonics, truncated_exp
from kdzoo.nerf.fields import FIELDS, make_field

SMALL = {
    "hash": {"levels": 8, "table": 10, "finest": 64},
    "mlp": {"octaves": 4, "layers": 3, "width": 16, "skip": 1},
    "vm": {"resolution": 9, "density_rank": 2, "colour_rank": 3},
    "tensors": {"resolution": 7},
}


def points(count=50):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0))


def directions(count=50):
    return torch.nn.functional.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(1)), dim=1)


def test_the_hash_grid_is_the_published_one():
    grid = HashGrid(levels=5, features=2, table=9, coarsest=4, finest=40)
    torch.nn.init.normal_(grid.table)
    x = points(30)
    growth = (40 / 4) ** (1 / 4)
    expected = torch.zeros(30, 5, 2)
    start = 0
    for level in range(5):
        scale = 4 * growth**level - 1
        side = math.ceil(scale) + 2
        rows = min(512, math.ceil(side**3 / 8) * 8)
        for p, position in enumerate(x.tolist()):
            place = [torch.tensor(c * scale + 0.5, dtype=torch.float32).item() for c in position]
            cell = [math.floor(c) for c in place]
            for corner in range(8):
                at = [c + (corner >> axis & 1) for axis, c in enumerate(cell)]
                weight = math.prod(
                    (c - f) if corner >> axis & 1 else 1 - (c - f) for axis, (c, f) in enumerate(zip(place, cell))
                )
                if side**3 <= 512:
                    row = at[0] + side * at[1] + side * side * at[2]
                else:
                    row = 0
                    for c, prime in zip(at, PRIMES):
                        row ^= c * prime % 2**32
                    row %= 512
                expected[p, level] += weight * grid.table[start + row].detach()
        start += rows
    assert start == len(grid.table)
    assert 0 < grid.plain < 5  # of both kinds
    torch.testing.assert_close(grid(x).view(30, 5, 2), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("columns", [2, 7])
def test_interpolation_has_the_gradient_of_indexing(columns):
    index, weight = torch.randint(0, 20, (40, 8)), torch.rand(40, 8)
    table = torch.randn(20, columns, requires_grad=True)
    target = torch.randn(40, columns)
    (interpolate(table, index.int(), weight) * target).sum().backward()
    found, table.grad = table.grad, None
    plain = (table[index] * weight[..., None]).sum(1)
    torch.testing.assert_close(interpolate(table, index, weight), plain)
    (plain * target).sum().backward()
    torch.testing.assert_close(found, table.grad)


def test_vectors_and_matrices_are_grid_sampling():
    field = make_field("vm", 1.5, SMALL["vm"])
    x = (points() * 2 - 1) * 1.5
    u, size = x / 1.5, 9
    density, others = torch.zeros(len(x)), []
    for i, ((a, b), c) in enumerate(zip(((0, 1), (0, 2), (1, 2)), (2, 1, 0))):
        plane = field.planes.view(3, size, size, 5)[i].permute(2, 0, 1)[None]  # rows follow the second axis
        line = field.lines.view(3, size, 5)[i].T[None, :, :, None]
        at = grid_sample(plane, u[:, [a, b]][None, None], align_corners=True)[0, :, 0]
        on = grid_sample(line, torch.stack([torch.zeros(len(x)), u[:, c]], 1)[None, None], align_corners=True)[0, :, 0]
        density = density + (at * on)[:2].sum(0)
        others.append((at * on)[2:])
    expected = torch.cat([density[:, None], field.basis(torch.cat(others).T)], 1).clamp(-2, 7)
    torch.testing.assert_close(field.features(x), expected, atol=1e-5, rtol=1e-4)


def test_dense_tensors_are_grid_sampling():
    field = make_field("tensors", 2.0, SMALL["tensors"])
    x = (points() * 2 - 1) * 2
    volume = field.volume.view(7, 7, 7, 28).permute(3, 2, 1, 0)[None]  # grid_sample has x last
    sampled = grid_sample(volume, (x / 2)[None, None, None], align_corners=True)[0, :, 0, 0].T
    numbers = field.features(x)
    torch.testing.assert_close(numbers, sampled, atol=1e-5, rtol=1e-4)
    harmonics = spherical_harmonics(directions(), 3)
    colour = torch.stack([(numbers[:, 1 + 9 * c : 10 + 9 * c] * harmonics).sum(1) for c in range(3)], 1).sigmoid()
    torch.testing.assert_close(field.colour(numbers, directions()), colour)


def test_spherical_harmonics_are_orthonormal():
    """By a product rule that is exact for polynomials of this degree."""
    nodes, weights = (torch.from_numpy(each).float() for each in __import__("numpy").polynomial.legendre.leggauss(8))
    angle = 2 * math.pi * torch.arange(16) / 16
    z = nodes[:, None].expand(8, 16)
    r = (1 - z * z).sqrt()
    values = spherical_harmonics(torch.stack([r * angle.cos(), r * angle.sin(), z], -1), 4)  # [8, 16, 16]
    gram = torch.einsum("i,ijk,ijl->kl", weights * 2 * math.pi / 16, values, values)
    torch.testing.assert_close(gram, torch.eye(16), atol=1e-5, rtol=0)


def test_small_things():
    assert frequencies(points(), 10).shape == (50, 63)
    x = torch.tensor([20.0, 1.0, -20.0], requires_grad=True)
    y = truncated_exp(x)
    torch.testing.assert_close(y, x.exp())
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([math.exp(12), math.e, math.exp(-12)]))


def test_published_sizes():
    def count(name):
        with torch.device("meta"):
            return sum(p.numel() for p in make_field(name, 1.0, {}).parameters())

    heads = 28 * 64 + 64 * 16 + 31 * 64 + 64 * 64 + 64 * 3
    trunk = (63 * 256 + 256) + 5 * (256 * 256 + 256) + ((256 + 63) * 256 + 256) + (256 * 28 + 28)
    assert count("mlp") == trunk + heads
    assert count("vm") == 64 * 3 * (300**2 + 300) + 144 * 15 + 31 * 64 + 64 * 64 + 64 * 3
    assert count("tensors") == 28 * 128**3


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_keeps_the_contract(name):
    field = make_field(name, 1.0, SMALL[name])
    x, d = points() * 2 - 1, directions()
    numbers = field.features(x)
    assert numbers.shape == (50, 28 if name == "tensors" else 16)
    assert numbers.dtype == torch.float32
    colour = field.colour(numbers, d)
    assert colour.shape == (50, 3)
    assert bool(((colour >= 0) & (colour <= 1)).all())
    torch.testing.assert_close(field.density(x), numbers[:, 0].exp())
    (colour.sum() + numbers.sum()).backward()
    assert all(p.grad is not None for p in field.parameters())
    for parameter in field.parameters():
        parameter.data.mul_(1e4)
    assert field.features(x)[:, 0].min() >= -2
    assert field.features(x)[:, 0].max() <= 7
    empty = field.features(x[:0])
    assert field.colour(empty, d[:0]).shape == (0, 3)


def test_a_wrong_size_is_refused():
    with pytest.raises(UserError, match=r"no size 'levles'. Near: levels"):
        make_field("hash", 1.0, {"levles": 3})
    with pytest.raises(UserError, match="whole number above zero"):
        make_field("vm", 1.0, {"resolution": 0})
    with pytest.raises(UserError, match="no field 'hsah'"):
        make_field("hsah", 1.0, {})
