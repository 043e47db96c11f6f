"""Marching, compositing and the grid against literal loops."""

import math

import numpy as np
import pytest
import torch

from kdzoo.datamodules.cameras import Camera, SpherePrior, around, in_front, look_at, orbit, rays, turned
from kdzoo.errors import UserError
from kdzoo.nerf.marching import Samples, composite, march
from kdzoo.nerf.occupancy import OccupancyGrid
from kdzoo.nerf.radiance import Radiance

SMALL = {"levels": 4, "table": 8, "finest": 16}


def view(count=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    origin = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1) * 3
    target = torch.rand(count, 3, generator=generator) * 2.4 - 1.2  # some miss the box
    return origin, torch.nn.functional.normalize(target - origin, dim=1)


def test_marching_finds_every_point_in_an_occupied_cell():
    grid = OccupancyGrid(8, bound=1.5)
    grid.keep(torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3)
    origin, direction = view()
    jitter = torch.rand(len(origin), generator=torch.Generator().manual_seed(2))
    samples = march(origin, direction, grid, 40, jitter)
    step = 2 * math.sqrt(3) * 1.5 / 40
    expected = []
    low, high = grid.low.tolist(), grid.high.tolist()
    for ray, (o, d, j) in enumerate(zip(origin.tolist(), direction.tolist(), jitter.tolist())):
        enters = max(min((lo - a) / b, (hi - a) / b) for a, b, lo, hi in zip(o, d, low, high))
        leaves = min(max((lo - a) / b, (hi - a) / b) for a, b, lo, hi in zip(o, d, low, high))
        t = max(enters, 0) + j * step
        while t < leaves:
            cell = [min(7, max(0, int((a + t * b + 1.5) / 3 * 8))) for a, b in zip(o, d)]
            if grid.occupied[tuple(cell)]:
                expected.append((ray, t))
            t += step
    found = list(zip(samples.ray.tolist(), samples.t.tolist()))
    # Rounding may move a point over a wall of a cell.
    assert abs(len(found) - len(expected)) <= 3
    agreed = {(ray, round(t, 3)) for ray, t in found} & {(ray, round(t, 3)) for ray, t in expected}
    assert len(agreed) > 0.98 * len(expected)
    torch.testing.assert_close(samples.x, origin[samples.ray] + samples.t[:, None] * direction[samples.ray])
    assert samples.ray.tolist() == sorted(samples.ray.tolist())


def test_compositing_is_the_volume_rendering_sum():
    generator = np.random.default_rng(0)
    ray = np.sort(generator.integers(0, 40, 400))
    ray = ray[ray != 7]  # a ray without points
    t, sigma, colour = generator.random(len(ray)), generator.random(len(ray)) * 20, generator.random((len(ray), 3))
    background, delta = generator.random((40, 3)), 0.05
    rgb, opacity, depth = np.zeros((40, 3)), np.zeros(40), np.zeros(40)
    for r in range(40):
        passed = 1.0
        for p in np.flatnonzero(ray == r):
            weight = passed * (1 - math.exp(-sigma[p] * delta))
            rgb[r] += weight * colour[p]
            depth[r] += weight * t[p]
            opacity[r] += weight
            passed *= math.exp(-sigma[p] * delta)
        rgb[r] += passed * background[r]
    tensors = [torch.from_numpy(each).float() for each in (t, sigma, colour, background)]
    samples = Samples(torch.zeros(len(ray), 3), torch.from_numpy(ray), tensors[0], delta, 40)
    pixels = composite(tensors[1], tensors[2], samples, tensors[3])
    for found, true in ((pixels.rgb, rgb), (pixels.opacity, opacity), (pixels.depth, depth)):
        np.testing.assert_allclose(found.numpy(), true, atol=1e-5)


def test_compositing_has_the_gradient_of_finite_differences():
    samples = Samples(torch.zeros(6, 3), torch.tensor([0, 0, 0, 2, 2, 2]), torch.arange(6.0), 0.3, 3)
    sigma = torch.rand(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    colour, background = torch.rand(6, 3), torch.rand(3, 3)

    def total(s):
        return composite(s, colour, samples, background).rgb.square().sum()

    total(sigma).backward()
    for i in range(6):
        shift = torch.zeros(6).index_fill(0, torch.tensor([i]), 1e-2)
        slope = (total(sigma.detach() + shift) - total(sigma.detach() - shift)) / 2e-2
        assert float(sigma.grad[i]) == pytest.approx(float(slope), abs=2e-3)


def test_an_empty_scene_is_pure_background():
    """The density is clipped at exp(-2): without the grid a chord of the box would be a quarter opaque."""
    radiance = Radiance("hash", SMALL, 1.0, steps=32, resolution=8)
    origin, direction = view(50)
    background = torch.rand(50, 3)
    radiance.grid.occupied.fill_(False)
    assert torch.equal(radiance.look(origin, direction, background).rgb, background)
    radiance.grid.occupied.fill_(True)
    assert float(radiance.look(origin, direction, background).opacity.max()) > 0.2


def test_carving_leaves_the_hull_of_a_ball():
    camera, ball = Camera(64, 64, 80, 80, 32, 32), 0.4
    views = []
    for pose in SpherePrior((3.0, 3.0)).poses(torch.rand(24, 6, generator=torch.Generator().manual_seed(0))):
        origin, direction = rays(camera, pose, torch.arange(64 * 64))
        nearest = (origin - (origin * direction).sum(1, keepdim=True) * direction).norm(dim=1)
        views.append((camera, pose, (nearest < ball).view(64, 64)))
    grid = OccupancyGrid(24)
    grid.carve(views)
    distance = grid.centres(torch.arange(24**3)).norm(dim=1).view(24, 24, 24)
    assert grid.occupied[distance < ball].all()
    assert not grid.occupied[distance > ball + 0.45].any()  # above and below there are few views
    assert float(grid.occupied.float().mean()) < 0.12
    assert float(grid.low.max()) <= -ball
    with pytest.raises(UserError, match=r"check data\.bound and the poses"):
        OccupancyGrid(8).carve([(camera, pose, torch.zeros(64, 64, dtype=torch.bool)) for camera, pose, _ in views])


def test_refreshing_drops_what_is_empty_and_never_revives_what_was_carved():
    grid = OccupancyGrid(8, threshold=10.0)
    grid.allowed[:, :, :2] = False

    def density(x):  # the half above x = 0
        return torch.where(x[:, 0] > 0, 20.0, 0.0)

    for number in range(3):
        grid.refresh(density, number, seed=0)
    assert grid.occupied[4:, :, 2:].all()
    assert not grid.occupied[:4].any()
    assert not grid.occupied[:, :, :2].any()
    with pytest.raises(UserError, match="lower the learning rate"):
        OccupancyGrid(4).refresh(lambda x: torch.zeros(len(x)), 0, seed=0)


def test_rays_go_through_the_centres_of_pixels():
    camera = Camera.with_angle(40, 30, 0.8)
    assert camera.fx == pytest.approx(20 / math.tan(0.4))
    pose = look_at(torch.tensor([1.0, -2, 0.5]), torch.tensor([0.2, 0.1, 0]), torch.tensor([0.0, 0, 1]))
    origin, direction = rays(camera, pose, torch.arange(40 * 30))
    point = (torch.cat([origin + 2.5 * direction, torch.ones(1200, 1)], 1) @ torch.linalg.inv(pose).T)[:, :3]
    column, row = camera.cx - camera.fx * point[:, 0] / point[:, 2], camera.cy + camera.fy * point[:, 1] / point[:, 2]
    torch.testing.assert_close(column, torch.arange(1200) % 40 + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(row, torch.arange(1200) // 40 + 0.5, atol=1e-3, rtol=0)


def test_random_poses_are_where_they_should_be():
    prior = SpherePrior((2.0, 3.0))
    poses = prior.poses(torch.rand(624, 6, generator=torch.Generator().manual_seed(0)))
    position = poses[:, :3, 3]
    radius = position.norm(dim=1)
    assert radius.min() >= 2 - 1e-4
    assert radius.max() <= 3 + 1e-4
    elevation = torch.rad2deg(torch.asin(position[:, 2] / radius))
    counts = [(90 - a) // 15 + 1 for a in range(80)]
    expected = [2 * sum(counts[:15]), 2 * sum(counts[60:])]
    assert abs(int((elevation < 12.5).sum()) - expected[0]) < 40  # each degree reaches five below it
    assert abs(int((elevation > 57.5).sum()) - expected[1]) < 20
    back = torch.nn.functional.normalize(position, dim=1)
    torch.testing.assert_close(poses[:, :3, 2], back, atol=1e-5, rtol=1e-5)
    again = around(poses, None)
    assert again.radius == (pytest.approx(2, abs=0.05), pytest.approx(3, abs=0.05))
    assert again.elevation[0] <= 3
    assert again.elevation[1] >= 60
    box = in_front(poses)
    assert all(low < high for low, high in zip(box.low, box.high))
    for found in (turned(poses, torch.rand(624, 3)), box.poses(torch.rand(20, 6)), orbit(prior, 7), orbit(box, 5)):
        rotation = found[:, :3, :3]
        torch.testing.assert_close(
            rotation @ rotation.transpose(1, 2), torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0
        )
        assert torch.linalg.det(rotation).min() > 0.99
    moved = turned(poses, torch.rand(624, 3))
    assert torch.equal(moved[:, :3, 3], position)
    angle = torch.rad2deg(torch.acos((moved[:, :3, 2] * poses[:, :3, 2]).sum(1).clamp(-1, 1)))
    assert 1 < float(angle.max()) < 9 * math.sqrt(3)
