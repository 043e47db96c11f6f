"""RDED: the parts of real images that a teacher is surest of, put together into new images.

    s(c) = -CE(f(c), y);   an image is a mosaic of factor^2 crops with the largest s

Nothing is optimised. Of some real images of a class random square crops are made, of the size of a tile; of each image
the crop with the largest s is kept, and of these the best. The teacher sees a crop in the middle of an image of zeros.
The teacher labels what comes out: see `kdzoo.dataset.decoupled`.
Source: Sun, Shi and others, arXiv 2312.03526, section 4, and the authors' code, whose settings the defaults are: factor
2 for images of 224 pixels; 1 is theirs for 32.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, pad

from kdzoo.card import Card
from kdzoo.datamodules.augment import crop_box
from kdzoo.dataset.decoupled import Decoupled
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.errors import UserError
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
    arxiv="2312.03526",
    year=2024,
    family="dataset",
    task="dataset distillation",
    teacher="any classifier",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/LINs-lab/RDED",
    tags=("dataset distillation", "coreset"),
)


def mosaic(tiles: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Put tiles together into images: the i-th takes the tiles i, n + i, 2 n + i ..., row by row.

    Args:
        tiles: [factor^2 * n, C, height // factor, width // factor].
        factor: Tiles per side.
        height: Of the images. Where it is no multiple of the factor, the first tiles are stretched by a pixel.
        width: Likewise.

    Returns:
        [n, C, height, width].
    """
    grid = tiles.unflatten(0, (factor, factor, -1))  # [row, column, n, C, h, w]
    heights, widths = ([side // factor + (i < side % factor) for i in range(factor)] for side in (height, width))
    rows = [
        torch.cat([interpolate(grid[i, j], (heights[i], widths[j])) for j in range(factor)], dim=-1)
        for i in range(factor)
    ]
    return torch.cat(rows, dim=-2)


class RDED(Decoupled):
    """Mosaics of the most telling crops.

    Args:
        ipc: Images per class.
        teacher: A classifier of the real images: a recipe's name, a `Teacher`, or several.
        temperature: Of the teacher's labels.
        factor: Tiles per side of an image.
        candidates: Real images of each class that are looked at.
        crops: Random crops of each.
        crop: Smallest and largest area of the crops, as parts of the image.
        network: Architecture that judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        teacher: Teachers,
        ipc: int = 10,
        temperature: float = 20.0,
        factor: int = 2,
        candidates: int = 300,
        crops: int = 5,
        crop: tuple[float, float] = (0.08, 1.0),
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(ipc, teacher, temperature, 0.0, network, width, depth, evaluation)
        if factor < 1 or crops < 1 or not 0 < crop[0] <= crop[1] <= 1:
            raise UserError(f"RDED: factor={factor} and crops={crops} must be 1 or more, crop={crop} rise within 1.")
        if candidates < ipc * factor**2:
            raise UserError(
                f"RDED: {ipc} images of {factor**2} tiles need {ipc * factor**2} candidates of each class, and these "
                f"are {candidates}: give more candidates, or a smaller factor."
            )
        self.factor, self.candidates, self.crops, self.crop = factor, candidates, crops, crop
        self.least_per_class = ipc * factor**2

    def start(self) -> None:
        """Leave the images empty: the first iteration fills them."""

    def distil_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Choose and put together, once; the optimizer's step that follows has no gradient and only counts."""
        if self.trainer.global_step == 0:
            for name, rows in zip(self.real.class_names, self.real.rows):
                if len(rows) < self.least_per_class:
                    raise UserError(
                        f"RDED: the class '{name}' has {len(rows)} training images, and {self.ipc} images of "
                        f"{self.factor**2} tiles need {self.least_per_class}: give a smaller ipc or factor."
                    )
            with torch.no_grad():
                self.images.copy_(torch.cat([self.make(label) for label in range(len(self.real.rows))]))
        return {"chosen": self.images.new_zeros(())}

    @torch.no_grad()
    def make(self, label: int) -> Tensor:
        """The images of one class, [ipc, C, H, W]."""
        real = self.real_images(self.real.draw(label, self.candidates))  # [n, C, H, W]
        height, width = real.shape[-2:]
        target = self.labels.new_full((len(real),), label)
        best, tiles = torch.full((len(real),), torch.inf, device=real.device), None
        for _ in range(self.crops):
            cropped = torch.stack([self._crop(image) for image in real])  # [n, C, H // factor, W // factor]
            loss = cross_entropy(self.teach(_in_the_middle(cropped, height, width)), target, reduction="none")
            better = (loss < best)[:, None, None, None]
            tiles = cropped if tiles is None else torch.where(better, cropped, tiles)
            best = torch.minimum(loss, best)
        assert tiles is not None
        chosen = best.argsort(stable=True)[: self.ipc * self.factor**2]
        return mosaic(tiles[chosen], self.factor, height, width)

    def _crop(self, image: Tensor) -> Tensor:
        """A random square crop of an image [C, H, W], of the size of a tile."""
        height, width = image.shape[-2:]
        seed = int(torch.randint(2**31, ()))
        left, top, right, bottom = crop_box(seed, 0, 0, height, width, self.crop, ratio=(1.0, 1.0))
        size = (height // self.factor, width // self.factor)
        return interpolate(image[None, :, top:bottom, left:right], size, mode="bilinear", antialias=True)[0]


def _in_the_middle(tiles: Tensor, height: int, width: int) -> Tensor:
    down, right = height - tiles.shape[-2], width - tiles.shape[-1]
    return pad(tiles, (right // 2, right - right // 2, down // 2, down - down // 2))
