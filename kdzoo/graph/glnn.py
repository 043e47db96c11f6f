"""Graph-less neural networks: an MLP learns what a graph network says of every node, and needs no edges afterwards.

    loss = label_weight * CE(z_s, y) over the labelled nodes + (1 - label_weight) * KL(p_t || p_s) over all nodes

All nodes are those that the training sees: with an inductive split the others are in no term. The teacher is frozen and
in evaluation mode, so that its soft labels are the same in every step.
Source: Zhang et al., arXiv 2110.08727, eq. 1 and its table of hyper-parameters (label_weight 0 throughout). The authors
train the MLP on batches of nodes; here a step sees all of them.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.graph.node_classifier import NodeClassifier
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Graph-less Neural Networks: Teaching Old MLPs New Tricks via Distillation",
    arxiv="2110.08727",
    year=2022,
    family="graph",
    task="node classification",
    teacher="any graph network",
    student="an MLP",
    data="a graph with some labelled nodes",
    code="https://github.com/snap-research/graphless-neural-networks",
    headline="seven graphs: 12.36 points over an MLP, inference 146 to 273 times faster than a graph network",
    tags=("logits", "label-free"),
)


class GLNN(NodeClassifier):
    """Distillation of a graph network into an MLP.

    Args:
        teacher: A recipe's name, a `Teacher`, or several.
        student: `mlp`; a graph network is a student as well, of plain distillation.
        label_weight: Weight of the labels' term, in [0, 1]; the teacher's has the rest.
        hidden: Width of the hidden layers.
        layers: Number of layers.
        dropout: Probability after every hidden layer.
        norm: `batch_norm`, `layer_norm` or None.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        teacher: Teachers,
        student: str = "mlp",
        label_weight: float = 0.0,
        hidden: int = 128,
        layers: int = 2,
        dropout: float = 0.0,
        norm: str | None = None,
        optim: Optim = Optim(name="adam", lr=0.01, weight_decay=5e-4, schedule="constant"),
    ) -> None:
        super().__init__(student, teacher, hidden, layers, dropout, norm, optim)
        if not 0 <= label_weight <= 1:
            raise UserError(f"label_weight={label_weight} is a share: give a number in [0, 1].")
        self.label_weight = label_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `kl`."""
        student_logits = self.logits(batch)  # [N, C]
        teacher_logits = self.teacher(batch)  # [N, C]
        return {
            "ce": self.label_weight * labelled_cross_entropy(student_logits, batch["label"]),
            "kl": (1 - self.label_weight) * kd(student_logits, teacher_logits, temperature=1.0),
        }
