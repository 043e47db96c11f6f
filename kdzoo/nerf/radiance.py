"""`Radiance`: a field with its grid: what is trained, taught by, rendered and exported."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.nerf.encodings import truncated_exp
from kdzoo.nerf.fields import make_field
from kdzoo.nerf.marching import Pixels, Samples, composite, march
from kdzoo.nerf.occupancy import OccupancyGrid

CHUNK = 8192  # rays at a time where nothing is learnt


class Radiance(nn.Module):
    """A radiance field that can be looked at.

    Args:
        field: A key of `kdzoo.nerf.fields.FIELDS`.
        sizes: Its sizes, where they differ from the published ones.
        bound: Half the side of the scene's box.
        steps: Steps of a ray along the diagonal of the box.
        resolution: Of the occupancy grid.
        threshold: Of the occupancy grid.
    """

    def __init__(
        self,
        field: str,
        sizes: dict[str, Any],
        bound: float,
        steps: int = 1024,
        resolution: int = 128,
        threshold: float = 10.0,
    ) -> None:
        super().__init__()
        self.arguments = {"field": field, "sizes": dict(sizes), "bound": bound, "steps": steps}
        self.arguments |= {"resolution": resolution, "threshold": threshold}
        self.steps, self.bound = steps, bound
        self.field = make_field(field, bound, sizes)
        self.grid = OccupancyGrid(resolution, bound, threshold)

    def march(self, origin: Tensor, direction: Tensor, jitter: Tensor | None = None) -> Samples:
        """Points along rays [N, 3]; `jitter` [N] in [0, 1) shifts each ray's."""
        return march(origin, direction, self.grid, self.steps, jitter)

    def render(
        self, origin: Tensor, direction: Tensor, background: Tensor, jitter: Tensor | None = None
    ) -> tuple[Pixels, Samples]:
        """What rays [N, 3] see before a background [N, 3]."""
        samples = self.march(origin, direction, jitter)
        numbers = self.field.features(samples.x)
        colour = self.field.colour(numbers, direction[samples.ray])
        return composite(truncated_exp(numbers[:, 0]), colour, samples, background), samples

    @torch.no_grad()
    def views(self, origin: Tensor, direction: Tensor, background: Tensor) -> Iterator[Pixels]:
        """Render any number of rays, a chunk at a time, without what a gradient needs."""
        for start in range(0, len(origin), CHUNK):
            part = slice(start, start + CHUNK)
            pixels, _ = self.render(origin[part], direction[part], background[part])
            yield Pixels(pixels.rgb.float(), pixels.opacity, pixels.depth, pixels.weights[:0])

    def look(self, origin: Tensor, direction: Tensor, background: Tensor) -> Pixels:
        """Render any number of rays at once, see `views`."""
        found = list(self.views(origin, direction, background))
        return Pixels(*(torch.cat([getattr(each, name) for each in found]) for name in Pixels.__dataclass_fields__))
