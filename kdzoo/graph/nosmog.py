"""NOSMOG: an MLP learns of a graph network, and is told where nodes lie, how alike they are, and how to bear noise.

    s(x) = label_weight * CE(f(x), y) over the labelled nodes + (1 - label_weight) * KL(p_t || f(x)) over all nodes
    loss = s([x, p]) + adversarial_weight * s([x, p] + delta)
           + similarity_weight * mean over pairs of nodes of (h_t . h_t' - e . e')^2
    e = relu(W h + b),  delta = argmax of s in a box of half-width `eps`, by five steps of its sign

p are DeepWalk's positions of the nodes (`kdzoo.graph.positions`), h the outputs of the last hidden layer before its
activation. A node that the training has not seen lies at the mean of its neighbours: their positions are all that the
student asks of the edges. Source: Tian et al., arXiv 2208.10010, eq. 2 to 7; the weights are the authors' for Cora. As
theirs, the last two terms see a batch of 512 nodes in a step; the first one here sees all.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.export.node_network import export_node_network
from kdzoo.graph.node_classifier import NodeClassifier
from kdzoo.graph.positions import DeepWalk, deepwalk
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Learning MLPs on Graphs: A Unified View of Effectiveness, Robustness, and Efficiency",
    arxiv="2208.10010",
    year=2023,
    family="graph",
    task="node classification",
    teacher="any graph network",
    student="an MLP",
    data="a graph with some labelled nodes",
    code="https://github.com/meettyj/NOSMOG",
    tags=("logits", "features", "adversarial", "label-free"),
)

ASCENTS = 5  # steps of the adversary, each a quarter of its box


class NOSMOG(NodeClassifier):
    """Distillation of a graph network into an MLP that knows positions.

    Args:
        teacher: A recipe's name, a `Teacher`, or several.
        label_weight: Weight of the labels' term, in [0, 1]; the teacher's has the rest.
        similarity_weight: Weight of the similarities.
        adversarial_weight: Weight of the disturbed features.
        eps: Half-width of the box in which they are disturbed.
        batch: Nodes of a step that are compared with each other, and disturbed.
        positions: How positions are learned; None: without them.
        hidden: Width of the hidden layers.
        layers: Number of layers, 2 or more.
        dropout: Probability after every hidden layer.
        norm: `batch_norm`, `layer_norm` or None.
        optim: The optimizer and its schedule.

    Attributes:
        position: float32 [n, D] of the nodes of the training graph.
        known: Their numbers, int64 [n], ascending.
    """

    position: Tensor
    known: Tensor

    def __init__(
        self,
        teacher: Teachers,
        label_weight: float = 0.0,
        similarity_weight: float = 0.1,
        adversarial_weight: float = 0.1,
        eps: float = 0.04,
        batch: int = 512,
        positions: DeepWalk | None = DeepWalk(),
        hidden: int = 128,
        layers: int = 2,
        dropout: float = 0.6,
        norm: str | None = None,
        optim: Optim = Optim(name="adam", lr=0.01, weight_decay=5e-3, schedule="constant"),
    ) -> None:
        super().__init__("mlp", teacher, hidden, layers, dropout, norm, optim)
        if not 0 <= label_weight <= 1:
            raise UserError(f"label_weight={label_weight} is a share: give a number in [0, 1].")
        if layers < 2 or min(similarity_weight, adversarial_weight, eps) < 0 or batch < 2:
            raise UserError(
                f"NOSMOG: layers={layers} and batch={batch} must be 2 or more, "
                f"similarity_weight={similarity_weight}, adversarial_weight={adversarial_weight} and eps={eps} 0 or "
                "more."
            )
        self.label_weight, self.similarity_weight = label_weight, similarity_weight
        self.adversarial_weight, self.eps, self.batch = adversarial_weight, eps, batch
        self.positions = DeepWalk(**positions) if isinstance(positions, dict) else positions

    def build(self, spec: dict[str, Any]) -> None:
        """Make the student, the teacher, and room for the positions."""
        super().build(spec)
        self.encoder = nn.Linear(self.sizes["hidden"], self.sizes["hidden"])  # W, in the training alone
        self.register_buffer("position", torch.zeros(0, self.inputs(spec) - spec["features"]))
        self.register_buffer("known", torch.zeros(0, dtype=torch.long))

    def inputs(self, spec: dict[str, Any]) -> int:
        """The features of a node, and its position."""
        return spec["features"] + (self.positions.size if self.positions else 0)

    def on_fit_start(self) -> None:
        """Learn the positions, unless a checkpoint has them."""
        if self.positions and not len(self.known):
            graph = next(iter(self.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
            order = graph["index"].argsort()
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            found = deepwalk(graph["edges"], len(order), self.positions, seed)
            self.position, self.known = found[order].to(self.device), graph["index"][order].to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for as many positions as the checkpoint has."""
        super().on_load_checkpoint(checkpoint)
        for name in ("position", "known"):
            setattr(self, name, torch.empty_like(checkpoint["state_dict"][name], device=self.device))

    def located(self, batch: dict[str, Tensor]) -> Tensor:
        """Features and positions, [N, F + D]; see the top of this file for nodes that the training has not seen."""
        if self.positions is None:
            return batch["x"]
        own = batch["x"].new_zeros(len(batch["x"]), self.positions.size)
        if len(self.known):
            at = torch.searchsorted(self.known, batch["index"]).clamp(max=len(self.known) - 1)
            seen = self.known[at] == batch["index"]
            own[seen] = self.position[at[seen]]
            edges = batch["edges"][seen[batch["edges"][:, 0]] & ~seen[batch["edges"][:, 1]]]
            count = torch.bincount(edges[:, 1], minlength=len(own)).clamp(min=1)
            own.index_add_(0, edges[:, 1], own[edges[:, 0]] / count[edges[:, 1], None])
        return torch.cat([batch["x"], own], 1)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """What the student says of every node, [N, C]."""
        return self.student(self.located(batch), batch["edges"])

    # ----------------------------------------------------------------------------------------------------- losses

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, `kl`, `similarity` and `adversarial`."""
        x, label = self.located(batch), batch["label"]
        taught = self.teacher.features(batch, ["logits", "hidden"])
        logits = self.student(x, batch["edges"])  # [N, C]
        nodes = torch.randperm(len(x), device=x.device)[: self.batch]
        few, wanted = x[nodes], taught["logits"][nodes]
        _, found = self.student.forward_with(few, batch["edges"], ["hidden"])
        encoded = dropout(self.encoder(found["hidden"]).relu(), self.sizes["dropout"], self.training)
        delta = self.adversary(few, label[nodes], wanted)
        return {
            "ce": self.label_weight * labelled_cross_entropy(logits, label),
            "kl": (1 - self.label_weight) * kd(logits, taught["logits"], temperature=1.0),
            "similarity": self.similarity_weight * similarity_loss(encoded, taught["hidden"][nodes].float()),
            "adversarial": self.adversarial_weight * self.said(few + delta, label[nodes], wanted),
        }

    def said(self, x: Tensor, label: Tensor, teacher_logits: Tensor) -> Tensor:
        """The s of the formula above, of what the student is given, [n, F + D]."""
        logits = self.student(x, label[:0])  # an MLP: no edges
        kl = kd(logits, teacher_logits, temperature=1.0)
        return self.label_weight * labelled_cross_entropy(logits, label) + (1 - self.label_weight) * kl

    def adversary(self, x: Tensor, label: Tensor, teacher_logits: Tensor) -> Tensor:
        """What to add to [n, F + D] so that the student is worse, each entry in [-eps, eps]."""
        delta = (2 * torch.rand_like(x) - 1) * self.eps
        for _ in range(ASCENTS):
            delta.requires_grad_()
            (slope,) = torch.autograd.grad(self.said(x + delta, label, teacher_logits), delta)
            delta = (delta.detach() + self.eps / 4 * slope.sign()).clamp(-self.eps, self.eps)
        return delta

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the student, and the positions of the nodes beside it."""
        tensors = {"position": self.position, "index": self.known} if self.positions else None
        return export_node_network(self.student, dict(self.spec or {}), folder, scores, tensors)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices of features [n, A] and [n, B]."""
    return (student @ student.T - teacher @ teacher.T).square().mean()
