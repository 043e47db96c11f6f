"""Deep mutual learning: two networks that start apart teach each other, and no teacher is needed.

    loss = CE(z_1, y) + KL(p_2 || p_1) + CE(z_2, y) + KL(p_1 || p_2),    the peer's p without gradient

The authors update the two in turn; here both take one step on the predictions of the same moment. The first network is
the student that is scored and exported.
Source: Zhang et al., arXiv 1706.00384, eq. 4-7.
"""

from typing import Any

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.students.build import build

CARD = Card(
    title="Deep Mutual Learning",
    arxiv="1706.00384",
    year=2018,
    family="image",
    task="image classification",
    teacher="a peer",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/YingZhangDUT/Deep-Mutual-Learning",
    tags=("logits", "online"),
)


class DML(Classifier):
    """Deep mutual learning.

    Args:
        student: Any timm architecture.
        peer: The peer's architecture; None: the student's.
        temperature: T of the terms between the two.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        peer: str | None = None,
        temperature: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, None, weights, optim)
        self.peer_architecture, self.temperature = peer or student, temperature

    def build(self, spec: dict[str, Any]) -> None:
        """Add the peer, from weights of its own."""
        super().build(spec)
        self.peer = build(self.peer_architecture, spec)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return both networks' `ce` and `kl`."""
        student, peer = self.student(batch["image"]), self.peer(batch["image"])  # [B, C]
        return {
            "ce": labelled_cross_entropy(student, batch["label"]),
            "kl": kd(student, peer.detach(), self.temperature),
            "peer_ce": labelled_cross_entropy(peer, batch["label"]),
            "peer_kl": kd(peer, student.detach(), self.temperature),
        }
