"""Distribution matching: per class, the mean features of the synthetic images are those of the real ones.

    loss = sum_c | mean phi(A(T_c)) - mean phi(A(S_c)) |^2

phi is a network with new random weights in every iteration, never trained, up to its penultimate features; A is the
same random augmentation for the real batch T_c and the synthetic images S_c of a class. No second derivatives: the
cheap method.
Source: Zhao and Bilen, arXiv 2110.04181, eq. 5; the rate, 1, grows to 10 from 100 images per class on, in the authors'
code.
"""

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.augment import DSA, augment, operations
from kdzoo.dataset.distiller import Distiller, Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.losses.matching import distribution_loss

CARD = Card(
    title="Dataset Condensation with Distribution Matching",
    arxiv="2110.04181",
    year=2023,
    family="dataset",
    task="dataset distillation",
    teacher="random networks",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/VICO-UoE/DatasetCondensation",
    headline="CIFAR-10, 10 images per class: 48.9 % (ConvNet)",
    tags=("dataset distillation", "distribution matching"),
)


class DM(Distiller):
    """Distribution matching.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        lr_img: Learning rate of the pixels.
        momentum_img: Its momentum.
        batch_real: Real images of each class in an iteration.
        augmentation: What both batches go through: operations joined by `_`, or `none`.
        network: Architecture that distils and judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        ipc: int = 10,
        init: Init = "real",
        lr_img: float = 1.0,
        momentum_img: float = 0.5,
        batch_real: int = 256,
        augmentation: str = DSA,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(ipc, init, lr_img, momentum_img, network, width, depth, evaluation)
        operations(augmentation)
        self.batch_real, self.augmentation = batch_real, augmentation

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `distance`."""
        network = self.fresh_network().requires_grad_(False)
        rows = [self.real.draw(label, self.batch_real) for label in range(len(self.real.rows))]
        seeds = torch.randint(2**31, (len(rows),)).tolist()
        real = self.real_images(torch.cat(rows)).split([len(each) for each in rows])
        real = [augment(images, self.augmentation, seed, siamese=True) for images, seed in zip(real, seeds)]
        synthetic = [
            augment(images, self.augmentation, seed, siamese=True)
            for images, seed in zip(self.images.split(self.ipc), seeds)
        ]
        with torch.no_grad():
            targets = [features.mean(0) for features in network.features(torch.cat(real)).split(list(map(len, rows)))]
        features = network.features(torch.cat(synthetic)).unflatten(0, (-1, self.ipc))  # [classes, ipc, D]
        return {"distance": distribution_loss(torch.stack(targets)[:, None], features)}
