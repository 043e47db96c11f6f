"""RDED: the parts of real images that a teacher is surest of, put together into new images.

    s(c) = -CE(f(c), y);   an image is a mosaic of factor^2 crops with the largest s

Nothing is optimised. Of some real images of a class random crops are made, of each image the crop with the largest s is
kept, and of these the best; each is shrunk to its tile. The teacher labels what comes out: see
`kdzoo.dataset.decoupled`.
Source: Sun, Shi and others, arXiv 2312.03526, section 4; factor 2 is theirs for images of 224 pixels, 1 for small ones.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

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


def mosaic(tiles: Tensor, factor: int) -> Tensor:
    """Put together [n * factor^2, C, H, W] row by row into n images [n, C, H, W], each tile shrunk by the factor.

    Where the side is no multiple of the factor, the last tiles are larger by the rest.
    """
    height, width = tiles.shape[-2:]
    rows = [height // factor] * (factor - 1) + [height - height // factor * (factor - 1)]
    columns = [width // factor] * (factor - 1) + [width - width // factor * (factor - 1)]
    groups = tiles.unflatten(0, (-1, factor, factor))  # [n, row, column, C, H, W]
    return torch.cat(
        [
            torch.cat([_shrink(groups[:, i, j], rows[i], columns[j]) for j in range(factor)], dim=-1)
            for i in range(factor)
        ],
        dim=-2,
    )


def _shrink(x: Tensor, height: int, width: int) -> Tensor:
    return x if x.shape[-2:] == (height, width) else interpolate(x, (height, width), mode="bilinear", antialias=True)


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
        crop: tuple[float, float] = (0.5, 1.0),
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
            self.real.check(self.least_per_class)
            with torch.no_grad():
                self.images.copy_(torch.cat([self.make(label) for label in range(len(self.real.rows))]))
        return {"chosen": self.images.new_zeros(())}

    @torch.no_grad()
    def make(self, label: int) -> Tensor:
        """The images of one class, [ipc, C, H, W]."""
        real = self.real_images(self.real.draw(label, self.candidates))  # [n, C, H, W]
        best, tiles = torch.full((len(real),), torch.inf, device=real.device), real.clone()
        for _ in range(self.crops):
            cropped = torch.stack([self._crop(image) for image in real])
            loss = cross_entropy(self.teach(cropped), self.labels.new_full((len(real),), label), reduction="none")
            better = loss < best
            best[better], tiles[better] = loss[better], cropped[better]
        chosen = best.argsort(stable=True)[: self.ipc * self.factor**2]
        return mosaic(tiles[chosen], self.factor)

    def _crop(self, image: Tensor) -> Tensor:
        """A random crop of an image [C, H, W], enlarged to its size."""
        height, width = image.shape[-2:]
        left, top, right, bottom = crop_box(int(torch.randint(2**31, ())), 0, 0, height, width, self.crop)
        part = image[None, :, top:bottom, left:right]
        return interpolate(part, (height, width), mode="bilinear", antialias=True)[0]
