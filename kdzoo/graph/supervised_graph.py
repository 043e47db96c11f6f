"""Plain training of a classifier of graphs, on all of them: what a distillation of graphs is compared with.

    loss = CE(z, y)

The network's defaults are those of the graph isomorphism network. Source: arXiv 1810.00826, section 7.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from kdzoo.card import Card
from kdzoo.graph.graph_classifier import GraphClassifier
from kdzoo.graph.graph_networks import Pool
from kdzoo.optim import Optim

CARD = Card(
    title="Supervised graph classification",
    arxiv="1810.00826",
    year=2019,
    family="graph",
    task="graph classification",
    student="any message-passing network",
    data="labelled graphs",
    tags=("baseline",),
)


class SupervisedGraph(GraphClassifier):
    """Supervised training on all graphs.

    Args:
        student: `gin` or `gcn`.
        hidden: Width.
        layers: Steps of message passing.
        dropout: Probability after every step but the last, and before the last layer.
        norm: `batch_norm`, `layer_norm` or None.
        pool: `sum` or `mean` of the nodes.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str = "gin",
        hidden: int = 64,
        layers: int = 5,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        pool: Pool = "sum",
        optim: Optim = Optim(name="adam", lr=0.01, weight_decay=0.0, schedule="constant"),
    ) -> None:
        super().__init__(student, hidden, layers, dropout, norm, pool, optim)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`."""
        return {"ce": cross_entropy(self.logits(batch), batch["label"])}
