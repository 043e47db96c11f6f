"""Random graphs of the training part, as many as fit into some bytes: what a distillation of graphs has to beat.

The classes keep their shares of the bytes. The choice is a function of the seed alone.
"""

import torch

from kdzoo.card import Card
from kdzoo.datamodules.graph_set_data import Graphs
from kdzoo.errors import UserError
from kdzoo.graph.graph_networks import Pool
from kdzoo.graph.small_set import DistilledGraphs, SmallSet, keep_in, shuffled
from kdzoo.optim import Optim

CARD = Card(
    title="Random graphs",
    year=2022,
    family="graph",
    task="distillation of graph sets",
    student="any message-passing network",
    data="labelled graphs",
    tags=("graph distillation", "coreset", "baseline"),
)


class RandomGraphs(DistilledGraphs):
    """Random graphs of each class.

    Args:
        bytes: The most bytes that they may have; None: all graphs.
        batch_size: Graphs of a step.
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
        bytes: int | None = None,
        batch_size: int = 32,
        student: str = "gin",
        hidden: int = 128,
        layers: int = 3,
        dropout: float = 0.6,
        norm: str | None = None,
        pool: Pool = "sum",
        optim: Optim = Optim(name="adam", lr=1e-3, weight_decay=1e-2, schedule="constant"),
    ) -> None:
        super().__init__(bytes, batch_size, student, hidden, layers, dropout, norm, pool, optim)

    def distil(self, graphs: Graphs) -> SmallSet:
        """Choose."""
        graphs = graphs.take(shuffled(len(graphs), self.seed))
        kept = keep_in(graphs.bytes_each(), graphs.labels, self.budgets(graphs))
        if not len(kept):
            raise UserError(
                f"RandomGraphs: bytes={self.bytes} hold no graph: the smallest takes {int(graphs.bytes_each().min())}."
            )
        return SmallSet(graphs.take(kept), torch.ones(len(kept)))
