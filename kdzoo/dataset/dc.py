"""Dataset condensation: the synthetic images of a class give a network the gradient that its real images give.

    loss = sum_c D(grad CE(f(T_c)), grad CE(f(S_c))),   D = sum over layers and output rows of 1 - cos

An iteration takes a fresh network through its life: update the images, train the network on them for some epochs,
update again. T_c are 256 real images of class c.
Source: Zhao, Mopuri and Bilen, arXiv 2006.05929, algorithm 1 and eq. 10; the numbers of loops are the authors'.
"""

from kdzoo.card import Card
from kdzoo.dataset.augment import NONE
from kdzoo.dataset.distiller import Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.gradient_matching import GradientMatching

CARD = Card(
    title="Dataset Condensation with Gradient Matching",
    arxiv="2006.05929",
    year=2021,
    family="dataset",
    task="dataset distillation",
    teacher="networks trained on the synthetic set",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/VICO-UoE/DatasetCondensation",
    headline="CIFAR-10, 10 images per class: 44.9 % (ConvNet)",
    tags=("dataset distillation", "gradient matching"),
)


class DC(GradientMatching):
    """Gradient matching.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        lr_img: Learning rate of the pixels.
        momentum_img: Its momentum.
        lr_net: Learning rate of the network, plain SGD on the synthetic images.
        loops: Updates of the images in an iteration, and epochs of the network between two; None: the authors' for this
            number of images per class.
        batch_real: Real images of each class for an update.
        network: Architecture that distils and judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged; the paper's is 300 epochs without augmentation.
    """

    def __init__(
        self,
        ipc: int = 10,
        init: Init = "noise",
        lr_img: float = 0.1,
        momentum_img: float = 0.5,
        lr_net: float = 0.01,
        loops: tuple[int, int] | None = None,
        batch_real: int = 256,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(epochs=300, augmentation=NONE),
    ) -> None:
        options = (ipc, init, lr_img, momentum_img, lr_net, loops, batch_real, NONE, network, width, depth)
        super().__init__(*options, evaluation)
