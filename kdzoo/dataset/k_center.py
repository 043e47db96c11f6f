"""K-center: the real images of a class such that none of the others is far from all of them, chosen greedily.

    s_k = argmax_f min_{j<k} | f - s_j |,   s_1 nearest to the mean

Source: Sener and Savarese, arXiv 1708.00489, algorithm 1.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.coresets import Coreset, Embedding
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.selection import k_center

CARD = Card(
    title="Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    year=2018,
    arxiv="1708.00489",
    family="dataset",
    task="dataset distillation",
    student="a subset",
    data="labelled images",
    tags=("dataset distillation", "coreset", "baseline"),
)


class KCenter(Coreset):
    """Real images that leave no other one far away.

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
        return k_center(features, self.ipc)
