"""Random real images: what every dataset distillation has to beat at the same size.

The choice is a function of the seed alone, and the same as the start of the methods that begin with real images.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.coresets import Coreset
from kdzoo.dataset.evaluation import Evaluation

CARD = Card(
    title="Random real images",
    year=2020,
    family="dataset",
    task="dataset distillation",
    student="a subset",
    data="labelled images",
    tags=("dataset distillation", "coreset", "baseline"),
)


class RandomCoreset(Coreset):
    """Random real images of each class.

    Args:
        ipc: Images per class.
        network: Architecture that judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        ipc: int = 10,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(ipc, "pixels", 1, network, width, depth, evaluation)

    def chosen(self) -> Tensor:
        """Rows of the chosen images, class by class."""
        return self.real.choose(self.ipc, self.seed)
