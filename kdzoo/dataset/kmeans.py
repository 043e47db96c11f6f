"""K-means: the real images of a class that are nearest to the centres of its clusters.

Averaged over ways to train on the set, and above all on other networks, this plain choice beats most distillation
methods. Source: DC-Bench, arXiv 2207.09639, 'k-means in the embedding space'.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.dataset.coresets import Coreset, Embedding
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.selection import k_means, nearest_to

CARD = Card(
    title="DC-BENCH: Dataset Condensation Benchmark",
    year=2022,
    arxiv="2207.09639",
    family="dataset",
    task="dataset distillation",
    student="a subset",
    data="labelled images",
    tags=("dataset distillation", "coreset", "baseline"),
)


class KMeans(Coreset):
    """Real images nearest to the centres of the clusters of their class.

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
        return nearest_to(k_means(features, self.ipc), features)
