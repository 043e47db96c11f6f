"""Dataset condensation with differentiable siamese augmentation: gradient matching of images that are changed alike.

    loss = sum_c D(grad CE(f(A(T_c, w))), grad CE(f(A(S_c, w))))

w is drawn anew for every class and update, and the same for the real and the synthetic images. The rest is `dc`; the
images start as real ones, and the network is trained on augmented images, too.
Source: Zhao and Bilen, arXiv 2102.08259, algorithm 1.
"""

from kdzoo.card import Card
from kdzoo.dataset.augment import DSA as STRATEGY
from kdzoo.dataset.distiller import Init
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.gradient_matching import GradientMatching

CARD = Card(
    title="Dataset Condensation with Differentiable Siamese Augmentation",
    arxiv="2102.08259",
    year=2021,
    family="dataset",
    task="dataset distillation",
    teacher="networks trained on the synthetic set",
    student="a synthetic set",
    data="labelled images",
    code="https://github.com/VICO-UoE/DatasetCondensation",
    headline="CIFAR-10, 10 images per class: 52.1 % (ConvNet)",
    tags=("dataset distillation", "gradient matching"),
)


class DSA(GradientMatching):
    """Gradient matching with siamese augmentation.

    Args:
        ipc: Synthetic images per class.
        init: Start from real images or from noise.
        lr_img: Learning rate of the pixels.
        momentum_img: Its momentum.
        lr_net: Learning rate of the network, plain SGD on the synthetic images.
        loops: Updates of the images in an iteration, and epochs of the network between two; None: the authors' for this
            number of images per class.
        batch_real: Real images of each class for an update.
        augmentation: What all images go through: operations joined by `_`; leave out `flip` for digits.
        network: Architecture that distils and judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        ipc: int = 10,
        init: Init = "real",
        lr_img: float = 0.1,
        momentum_img: float = 0.5,
        lr_net: float = 0.01,
        loops: tuple[int, int] | None = None,
        batch_real: int = 256,
        augmentation: str = STRATEGY,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        options = (ipc, init, lr_img, momentum_img, lr_net, loops, batch_real, augmentation, network, width, depth)
        super().__init__(*options, evaluation)
