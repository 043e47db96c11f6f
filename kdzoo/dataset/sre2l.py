"""SRe2L: images that a trained teacher classifies right and whose activations have the statistics that it has learnt.

    loss = CE(f(x), y) + bn_weight * sum_l w_l (| mu_l(x) - mu_l |_2 + | var_l(x) - var_l |_2)

Squeeze: the teacher f is trained with batch normalisation. Recover: from noise, by Adam, on random crops of the images;
mu_l and var_l are what the l-th normalisation keeps, mu_l(x) and var_l(x) those of a batch of one image per class; w_l
is `first_bn` for the first and 1 for the others. Relabel: see `kdzoo.dataset.decoupled`. No inner loop and no second
derivatives, so that the cost does not grow with what trains on the set: the road to ImageNet.
Source: Yin, Xing and Shen, arXiv 2306.13092; the defaults are those of the authors' script for ImageNet-1K (4,000
iterations), without the two priors on pixels, which it switches off. They train on the set by AdamW; here it is done by
the protocol of the family.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from kdzoo.card import Card
from kdzoo.datamodules.augment import crop_box
from kdzoo.dataset.decoupled import Decoupled
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.errors import UserError
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Squeeze, Recover and Relabel: Dataset Condensation at ImageNet Scale From A New Perspective",
    arxiv="2306.13092",
    year=2023,
    family="dataset",
    task="dataset distillation",
    teacher="classifiers with batch normalisation",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/VILA-Lab/SRe2L",
    tags=("dataset distillation", "data-free"),
)


def statistics_distance(seen: list[tuple[Tensor, nn.BatchNorm2d]], first: float) -> Tensor:
    """How far the statistics of activations are from what their normalisations keep.

    Args:
        seen: The input [B, C, H, W] of each normalisation, in the order of the forward pass.
        first: Weight of the first; the others have 1.

    Returns:
        The weighted sum of Euclidean distances, of means and of (biased) variances; a scalar.
    """
    total = seen[0][0].new_zeros(())
    for number, (x, norm) in enumerate(seen):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        distance = (mean - norm.running_mean).norm() + (variance - norm.running_var).norm()
        total = total + (first if number == 0 else 1.0) * distance
    return total


class SRe2L(Decoupled):
    """Squeeze, recover and relabel.

    Args:
        ipc: Synthetic images per class.
        teacher: A classifier with batch normalisation: a recipe's name, a `Teacher`, or several.
        temperature: Of the teacher's labels.
        lr_img: Learning rate of the pixels at the start; it falls to zero along a cosine.
        betas: Adam's decay rates.
        bn_weight: Weight of the statistics.
        first_bn: Weight of the first normalisation among them.
        crop: Smallest and largest area of the random crops, as parts of the image.
        jitter: Random shift of the crops down and right, up to so many pixels, round the edge.
        network: Architecture that judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        teacher: Teachers,
        ipc: int = 10,
        temperature: float = 20.0,
        lr_img: float = 0.25,
        betas: tuple[float, float] = (0.5, 0.9),
        bn_weight: float = 0.01,
        first_bn: float = 10.0,
        crop: tuple[float, float] = (0.08, 1.0),
        jitter: int = 32,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(ipc, teacher, temperature, lr_img, network, width, depth, evaluation)
        if not 0 < crop[0] <= crop[1] <= 1:
            raise UserError(f"SRe2L: crop={crop} must be two rising parts of 1, like (0.08, 1.0).")
        self.betas, self.bn_weight, self.first_bn = betas, bn_weight, first_bn
        self.crop, self.jitter = crop, jitter

    def build(self, spec: dict[str, Any]) -> None:
        """Check that the teacher keeps statistics."""
        super().build(spec)
        for network in self.teacher.networks:
            if not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
                raise UserError("SRe2L matches the statistics of batch normalisation, and this teacher has none.")

    def configure_optimizers(self) -> Any:
        """Adam on the pixels."""
        return torch.optim.Adam([self.images], lr=self.lr_img, betas=self.betas)

    def distil_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update all images, in batches of one per class: their statistics are those of balanced data."""
        for group in self.optimizers().optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = self.lr_img * 0.5 * (1 + math.cos(math.pi * self.progress))
        terms = {name: self.images.new_zeros(()) for name in ("ce", "statistics")}
        for number in range(self.ipc):
            x = self.preprocess.inverse(self._view(self.images[number :: self.ipc]))
            for network in self.teacher.networks:
                logits, seen = _watch(network, x)
                ce = cross_entropy(logits.float(), self.labels[number :: self.ipc])
                statistics = self.bn_weight * statistics_distance(seen, self.first_bn)
                self.manual_backward(ce + statistics, retain_graph=True)
                for name, term in (("ce", ce), ("statistics", statistics)):
                    terms[name] += term.detach() / (self.ipc * len(self.teacher.networks))
        return terms

    def _view(self, x: Tensor) -> Tensor:
        """One random crop for all images [B, C, H, W], enlarged to their size, mirrored half of the time, shifted."""
        height, width = x.shape[-2:]
        seed, mirrored, down, right = torch.randint(2**31, (4,)).tolist()
        left, top, end, bottom = crop_box(seed, 0, 0, height, width, self.crop)
        x = interpolate(x[..., top:bottom, left:end], (height, width), mode="bilinear", antialias=True)
        x = x.flip(-1) if mirrored % 2 else x
        return x.roll((down % (self.jitter + 1), right % (self.jitter + 1)), (-2, -1))

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the images in the range of pixels."""
        self.images.copy_(self.preprocess(self.preprocess.inverse(self.images).clamp(0, 1)))


def _watch(network: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, nn.BatchNorm2d]]]:
    """Logits of images in [0, 1], and the inputs of the batch normalisations on the way."""
    seen: list[tuple[Tensor, nn.BatchNorm2d]] = []
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda norm, given: seen.append((given[0], norm))) for norm in norms]
    try:
        return network(x), seen
    finally:
        for hook in hooks:
            hook.remove()
