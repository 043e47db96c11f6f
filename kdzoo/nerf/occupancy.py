"""`OccupancyGrid`: which cells of a scene's box may hold something, so that the others are never looked at.

The density of every field is clipped from below, so that where it is evaluated it is never zero: without the grid,
empty space would be visibly grey.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kdzoo.datamodules.augment import uniform
from kdzoo.datamodules.cameras import Camera
from kdzoo.errors import UserError

DECAY = 0.95  # of a cell's density from one refresh to the next
WARM = 16  # refreshes that look at every cell; later ones at a quarter of them
CHUNK = 2**17


class OccupancyGrid(nn.Module):
    """A grid of cells over [-bound, bound]^3.

    Args:
        resolution: Cells along each axis.
        bound: Half the side of the box.
        threshold: A cell is occupied if its density is above this and above the mean of all.

    Attributes:
        density: [R, R, R], the largest density seen lately; cells are ordered x, y, z.
        allowed: bool [R, R, R], what carving has left.
        occupied: bool [R, R, R].
        low, high: [3], the smallest box around what is occupied.
    """

    density: Tensor
    allowed: Tensor
    occupied: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, resolution: int = 128, bound: float = 1.0, threshold: float = 10.0) -> None:
        super().__init__()
        if resolution < 1 or bound <= 0:
            raise UserError(f"A grid of {resolution} cells for the bound {bound} is none: give both above zero.")
        self.resolution, self.bound, self.threshold = resolution, bound, threshold
        self.cells_per_unit = resolution / (2 * bound)
        shape = (resolution,) * 3
        self.register_buffer("density", torch.zeros(shape))
        self.register_buffer("allowed", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("low", torch.full((3,), -bound))
        self.register_buffer("high", torch.full((3,), bound))

    def place(self, x: Tensor) -> Tensor:
        """Positions [..., 3] in units of cells, from 0 to R."""
        return (x + self.bound) * self.cells_per_unit

    def centres(self, cells: Tensor) -> Tensor:
        """Centres [N, 3] of cells with these numbers [N]."""
        return self.corners(cells) + 0.5 / self.cells_per_unit

    def corners(self, cells: Tensor) -> Tensor:
        """Lower corners [N, 3] of cells with these numbers [N]."""
        r = self.resolution
        place = torch.stack([cells // r**2, cells // r % r, cells % r], -1)
        return place / self.cells_per_unit - self.bound

    def keep(self, occupied: Tensor) -> None:
        """Make these cells, bool [R, R, R], the occupied ones.

        Raises:
            UserError: There is none.
        """
        self.occupied.copy_(occupied)
        if not occupied.any():
            raise UserError(
                "Nothing of the scene is occupied: if the masks or poses carved it away, check data.bound and the "
                "poses; if training emptied it, lower the learning rate or the grid's threshold."
            )
        for axis in range(3):
            rows = occupied.movedim(axis, 0).flatten(1).any(1).nonzero()
            self.low[axis] = float(rows.min()) / self.cells_per_unit - self.bound
            self.high[axis] = float(rows.max() + 1) / self.cells_per_unit - self.bound

    @torch.no_grad()
    def carve(self, views: Iterable[tuple[Camera, Tensor, Tensor | None]]) -> None:
        """Leave only cells that some view sees, and that are in no view entirely beside its mask.

        Args:
            views: Camera, pose [4, 4] and mask bool [H, W] (None: everything may be the object) of each.

        Raises:
            UserError: Nothing is left.
        """
        device = self.density.device
        cells = torch.arange(self.resolution**3, device=device)
        seen = torch.zeros(len(cells), dtype=torch.bool, device=device)
        radius = 3**0.5 / 2 / self.cells_per_unit  # of the ball around a cell
        for camera, pose, mask in views:
            pose = pose.to(device)
            local = (self.centres(cells) - pose[:3, 3]) @ pose[:3, :3]
            depth = -local[:, 2]
            inside = depth > radius  # a cell about the camera itself is left alone
            depth = depth.clamp(min=radius)
            column = camera.cx + camera.fx * local[:, 0] / depth
            row = camera.cy - camera.fy * local[:, 1] / depth
            reach = max(camera.fx, camera.fy) * radius / (depth - radius).clamp(min=radius) + 1
            inside &= (column > 0) & (column < camera.width) & (row > 0) & (row < camera.height)
            seen |= inside
            if mask is None:
                continue
            # The number of object pixels in the square around each cell, by differences of a summed table.
            table = torch.zeros(camera.height + 1, camera.width + 1, dtype=torch.int32, device=device)
            table[1:, 1:] = mask.to(device).int().cumsum(0).cumsum(1)
            left, right = (((column + sign * reach).long()).clamp(0, camera.width) for sign in (-1, 1))
            top, bottom = (((row + sign * reach).long()).clamp(0, camera.height) for sign in (-1, 1))
            found = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
            stays = ~inside | (found > 0)
            cells, seen = cells[stays], seen[stays]
        left_over = torch.zeros_like(self.allowed).view(-1)
        left_over[cells[seen]] = True
        self.allowed.copy_(left_over.view_as(self.allowed))
        self.keep(self.allowed)

    @torch.no_grad()
    def refresh(self, density: Callable[[Tensor], Tensor], number: int, seed: int) -> None:
        """Look again at the density of cells, each at a random point, and decide which are occupied.

        Args:
            density: From positions [N, 3] to densities [N].
            number: How many times this was done before: chooses cells and points.
            seed: The run's.

        Raises:
            UserError: Nothing is occupied any more.
        """
        cells = self.allowed.view(-1).nonzero().squeeze(1)
        if number >= WARM:
            cells = cells[number % 4 :: 4]
        flat = self.density.view(-1)
        flat *= DECAY
        for part in cells.split(CHUNK):
            draws = uniform(seed, part.cpu()[:, None], number, torch.arange(3)).to(part.device)
            found = density(self.corners(part) + draws / self.cells_per_unit)
            flat[part] = torch.maximum(flat[part], found.float())
        self.keep(self.allowed & (self.density > min(self.threshold, float(self.density.mean()))))
