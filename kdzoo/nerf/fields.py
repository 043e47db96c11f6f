"""The four radiance fields, each cut in two blocks: position -> numbers, (numbers, direction) -> colour.

The first of the numbers is the logarithm of the density, clipped to [-2, 7]; in `hash`, `mlp` and `vm` fifteen others
follow, the same kind for all, so that any of them can teach any other number by number. The dense grid of `tensors`
holds density and the colour's spherical harmonics, and no such numbers. Sizes are those of Progressive Volume
Distillation by default.
"""

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from kdzoo.errors import UserError, near
from kdzoo.nerf.encodings import HashGrid, frequencies, interpolate, spherical_harmonics, truncated_exp

CLIP = (-2.0, 7.0)
NUMBERS = 16  # log-density and what the colour network takes
ENCODED = 28  # what comes out of the hash grid and the MLP's trunk, so that one head fits both
BANDS = 4  # of the direction's spherical harmonics


class Field(nn.Module):
    """A radiance field over [-bound, bound]^3.

    Attributes:
        shared: Whether the numbers are of the kind that `hash`, `mlp` and `vm` share.
        blocks: Names of the parts that have the same shape in other fields.
    """

    shared = True
    blocks: tuple[str, ...] = ()

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def features(self, x: Tensor) -> Tensor:
        """Numbers [P, F] at positions [P, 3]; the first is the log-density in [-2, 7]."""
        raise NotImplementedError

    def colour(self, numbers: Tensor, direction: Tensor) -> Tensor:
        """Colours [P, 3] in [0, 1] of numbers [P, F] seen along unit vectors [P, 3]."""
        raise NotImplementedError

    def density(self, x: Tensor) -> Tensor:
        """Densities [P] at positions [P, 3]."""
        return truncated_exp(self.features(x)[:, 0])

    def colour_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the second block."""
        yield from ()

    def slow_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that learn at a tenth of the rate."""
        yield from ()

    def sparsity(self) -> Tensor | None:
        """The L1 norm that keeps a factorised density small; None where there is none."""
        return None


class Head(nn.Module):
    """28 numbers -> log-density and 15 numbers; fewer than 28 count as followed by zeros."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(ENCODED, width, bias=False)
        self.output = nn.Linear(width, NUMBERS, bias=False)

    def forward(self, encoded: Tensor) -> Tensor:
        """[P, up to 28] -> [P, 16]."""
        return self.output(relu(linear(encoded, self.hidden.weight[:, : encoded.shape[1]])))


class ColourNetwork(nn.Sequential):
    """Encoded direction and 15 numbers -> colour before the sigmoid."""

    def __init__(self, width: int = 64) -> None:
        sizes = BANDS**2 + NUMBERS - 1, width, width, 3
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
        super().__init__(*layers[:-1])


class NetworkField(Field):
    """What `hash`, `mlp` and `vm` share: a network for the colour."""

    blocks: tuple[str, ...] = ("colour_net",)

    def __init__(self, bound: float) -> None:
        super().__init__(bound)
        self.colour_net = ColourNetwork()

    def colour(self, numbers: Tensor, direction: Tensor) -> Tensor:
        """See `Field`."""
        inputs = torch.cat([spherical_harmonics(direction, BANDS), numbers[:, 1:]], 1)
        return torch.sigmoid(self.colour_net(inputs).float())

    def colour_parameters(self) -> Iterator[nn.Parameter]:
        """See `Field`."""
        yield from self.colour_net.parameters()


def clipped(numbers: Tensor) -> Tensor:
    """Clip the first column to the range of log-densities, in float32."""
    numbers = numbers.float()
    return torch.cat([numbers[:, :1].clamp(*CLIP), numbers[:, 1:]], 1)


class HashField(NetworkField):
    """A multi-resolution hash grid and a small network (Instant-NGP).

    Args:
        bound: Half the side of the box.
        levels: Grids; with two features each their number must be 14 to give the 28 that the head takes, and fewer
            are followed by zeros.
        table: log2 of the rows of a level.
        coarsest: Resolution of the first grid.
        finest: Resolution of the last, per unit of the bound.
    """

    blocks = ("head", "colour_net")

    def __init__(self, bound: float, levels: int = 14, table: int = 19, coarsest: int = 16, finest: int = 2048) -> None:
        super().__init__(bound)
        if not 1 <= levels <= ENCODED // 2:
            raise UserError(f"A hash field has 1 to {ENCODED // 2} levels, not {levels}.")
        self.grid = HashGrid(levels, 2, table, coarsest, round(finest * bound))
        self.head = Head()

    def features(self, x: Tensor) -> Tensor:
        """See `Field`."""
        encoded = self.grid((x + self.bound) / (2 * self.bound))
        return clipped(self.head(encoded))


class MLPField(NetworkField):
    """Frequencies and a deep network (NeRF), whose last layer has 28 outputs, so that the head of `hash` fits it.

    Args:
        bound: Half the side of the box.
        octaves: Frequencies of each coordinate.
        layers: Linear layers of the trunk.
        width: Of the trunk.
        skip: After which layer the encoded position enters again, counted from 0.
    """

    blocks = ("head", "colour_net")

    def __init__(self, bound: float, octaves: int = 10, layers: int = 8, width: int = 256, skip: int = 3) -> None:
        super().__init__(bound)
        if layers < 2:
            raise UserError(f"The trunk of an mlp field has 2 layers or more, not {layers}.")
        inputs = 3 + 6 * octaves
        self.octaves, self.skip = octaves, skip
        wide = [width + inputs if number == skip else width for number in range(layers - 1)]
        outputs = [width] * (layers - 2) + [ENCODED]
        self.trunk = nn.ModuleList(nn.Linear(i, o) for i, o in zip([inputs, *wide], [width, *outputs]))
        self.head = Head()

    def features(self, x: Tensor) -> Tensor:
        """See `Field`."""
        encoded = frequencies(x, self.octaves)
        hidden = encoded
        for number, layer in enumerate(self.trunk):
            hidden = layer(hidden)
            if number < len(self.trunk) - 1:
                hidden = relu(hidden)
                if number == self.skip:
                    hidden = torch.cat([encoded.to(hidden.dtype), hidden], 1)
        return clipped(self.head(hidden))

    def slow_parameters(self) -> Iterator[nn.Parameter]:
        """All of them, as published."""
        yield from self.parameters()


class VMField(NetworkField):
    """Planes and lines (TensoRF's vector-matrix factors); all sixteen numbers are clipped.

    Args:
        bound: Half the side of the box.
        resolution: Of planes and lines.
        density_rank: Products per axis whose sum is the log-density.
        colour_rank: Products per axis that a linear map makes 15 numbers of.
    """

    def __init__(self, bound: float, resolution: int = 300, density_rank: int = 16, colour_rank: int = 48) -> None:
        super().__init__(bound)
        self.resolution, self.density_rank = resolution, density_rank
        rank = density_rank + colour_rank  # the first of them are the density's
        self.planes = nn.Parameter(0.1 * torch.randn(3 * resolution**2, rank))
        self.lines = nn.Parameter(0.1 * torch.randn(3 * resolution, rank))
        self.basis = nn.Linear(3 * colour_rank, NUMBERS - 1, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """See `Field`."""
        place = ((x / self.bound + 1) / 2 * (self.resolution - 1)).clamp(0, self.resolution - 1)
        cell = place.floor().clamp(max=self.resolution - 2)  # [P, 3]
        upper = place - cell
        weight = torch.stack([1 - upper, upper], -1)  # [P, 3, 2]
        corner = torch.stack([cell, cell + 1], -1).int()
        first, second, third = [0, 0, 1], [1, 2, 2], [2, 1, 0]  # the axes of each plane, and of its line
        size = self.resolution
        start = torch.arange(3, dtype=torch.int32, device=x.device)[:, None] * size
        at_plane = (start * size)[..., None] + corner[:, second][..., None] * size + corner[:, first][..., None, :]
        plane_weight = weight[:, second][..., None] * weight[:, first][..., None, :]
        planes = interpolate(self.planes, at_plane.view(-1, 4), plane_weight.view(-1, 4))
        lines = interpolate(self.lines, (start + corner[:, third]).view(-1, 2), weight[:, third].reshape(-1, 2))
        products = (planes * lines).view(len(x), 3, self.planes.shape[1])
        density = products[..., : self.density_rank].sum((1, 2))
        others = self.basis(products[..., self.density_rank :].flatten(1))
        return torch.cat([density[:, None], others.float()], 1).clamp(*CLIP)

    def slow_parameters(self) -> Iterator[nn.Parameter]:
        """The networks."""
        yield from self.basis.parameters()
        yield from self.colour_net.parameters()

    def sparsity(self) -> Tensor:
        """Mean absolute value of the density's planes and of its lines, added."""
        return self.planes[:, : self.density_rank].abs().mean() + self.lines[:, : self.density_rank].abs().mean()


class TensorField(Field):
    """A dense grid of log-densities and spherical harmonics (as Plenoxels), without any network.

    Args:
        bound: Half the side of the box.
        resolution: Of the grid.
        bands: Of the colour's spherical harmonics: bands^2 numbers for each channel.
    """

    shared = False

    def __init__(self, bound: float, resolution: int = 128, bands: int = 3) -> None:
        super().__init__(bound)
        self.resolution, self.bands = resolution, bands
        self.volume = nn.Parameter(0.02 * torch.randn(resolution**3, 1 + 3 * bands**2))

    def features(self, x: Tensor) -> Tensor:
        """See `Field`."""
        size = self.resolution
        place = ((x / self.bound + 1) / 2 * (size - 1)).clamp(0, size - 1)
        cell = place.floor().clamp(max=size - 2)
        upper = place - cell
        (a, b, c), (u, v, w) = (
            torch.stack([cell, cell + 1], -1).int().unbind(1),
            torch.stack([1 - upper, upper], -1).unbind(1),
        )
        index = (a[:, :, None, None] * size + b[:, None, :, None]) * size + c[:, None, None, :]
        weight = u[:, :, None, None] * v[:, None, :, None] * w[:, None, None, :]
        return clipped(interpolate(self.volume, index.view(-1, 8), weight.view(-1, 8)))

    def colour(self, numbers: Tensor, direction: Tensor) -> Tensor:
        """See `Field`."""
        harmonics = spherical_harmonics(direction, self.bands)  # [P, bands^2]
        return torch.sigmoid((numbers[:, 1:].view(len(numbers), 3, self.bands**2) * harmonics[:, None]).sum(-1))


FIELDS: dict[str, type[Field]] = {"hash": HashField, "mlp": MLPField, "vm": VMField, "tensors": TensorField}


def make_field(name: str, bound: float, sizes: dict[str, Any]) -> Field:
    """Make a field.

    Args:
        name: A key of `FIELDS`.
        bound: Half the side of the box.
        sizes: Arguments of the class that differ from the published ones.

    Raises:
        UserError: There is no such field or size.
    """
    if name not in FIELDS:
        raise UserError(f"There is no field '{name}'.{near(name, FIELDS)} All: {', '.join(FIELDS)}.")
    known = [size for size in inspect.signature(FIELDS[name]).parameters if size != "bound"]
    for size, value in sizes.items():
        if size not in known:
            raise UserError(f"The field '{name}' has no size '{size}'.{near(size, known)} All: {', '.join(known)}.")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"The size '{size}' of the field '{name}' must be a whole number above zero, not {value}.")
    return FIELDS[name](bound, **sizes)
