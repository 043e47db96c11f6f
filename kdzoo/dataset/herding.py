"""Herding: the real images of a class whose mean is closest to the mean of all, chosen one after the other.

    s_k = argmin_f | mu * k - (s_1 + ... + s_{k-1} + f) |

mu is the mean of the features of the class. Source: Welling, Herding dynamical weights to learn, ICML 2009.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.coresets import Coreset, Embedding
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.selection import herding

CARD = Card(
    title="Herding Dynamical Weights to Learn",
    year=2009,
    family="dataset",
    task="dataset distillation",
    student="a subset",
    data="labelled images",
    tags=("dataset distillation", "coreset", "baseline"),
)


class Herding(Coreset):
    """Real images whose mean is that of their class.

    Args:
        ipc: Images per class.
        embedding: Take distances between the features of a trained network, or between pixels.
        epochs: Passes over the real images to train that network.
        network: Architecture of the embedding and of the judges.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.
    """

    def __init__(
        self,
        ipc: int = 10,
        embedding: Embedding = "network",
        epochs: int = 30,
        network: str = "convnet",
        width: int = 128,
        depth: int | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(ipc, embedding, epochs, network, width, depth, evaluation)

    def select(self, features: Tensor) -> Tensor:
        """Rows of the chosen images among those with these features [n, D]."""
        return herding(features, self.ipc)
