"""Plain training of a classifier of nodes: the baseline of the graph methods, and the recipe of their teachers.

    loss = CE(z, y) over the labelled nodes

The defaults are those of the graph convolutional network. Source: arXiv 1609.02907, section 5.2.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.graph.node_classifier import NodeClassifier
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim

CARD = Card(
    title="Supervised node classification",
    arxiv="1609.02907",
    year=2017,
    family="graph",
    task="node classification",
    student="any graph network, or an MLP",
    data="a graph with some labelled nodes",
    tags=("baseline", "teacher"),
)


class SupervisedNode(NodeClassifier):
    """Supervised training, without a teacher.

    Args:
        student: `gcn`, `sage`, `gat`, `gin`, `sgc` or `mlp`.
        hidden: Width of the hidden layers.
        layers: Number of layers.
        dropout: Probability after every hidden layer.
        norm: `batch_norm`, `layer_norm` or None.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str = "gcn",
        hidden: int = 16,
        layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = None,
        optim: Optim = Optim(name="adam", lr=0.01, weight_decay=5e-4, schedule="constant"),
    ) -> None:
        super().__init__(student, None, hidden, layers, dropout, norm, optim)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`."""
        return {"ce": labelled_cross_entropy(self.logits(batch), batch["label"])}
