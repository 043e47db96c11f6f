"""How well anomalous nodes of graphs are found: strictly, node by node, and in their neighbourhood.

Tolerance is FLASH's (IEEE S&P 2024): within `hops` of a node of the attack, an alarm is not false, and a node of the
attack counts as found where another one so near is. It flatters, because much lies within two hops of a library that
all processes read; so both are to be shown.
"""

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision


def near(nodes: Tensor, edges: Tensor, hops: int) -> Tensor:
    """Which nodes are at most `hops` edges from one of `nodes`, bool [N]; edges int64 [E, 2] go both ways."""
    found = nodes.clone()
    for _ in range(hops):
        found = found.index_fill(0, edges[found[edges[:, 0]], 1], True)
    return found


def best_near(score: Tensor, nodes: Tensor, edges: Tensor, hops: int) -> Tensor:
    """The highest score [N] of those of `nodes`, bool [N], that are at most `hops` edges away; -inf without any."""
    best = score.masked_fill(~nodes, -torch.inf)
    for _ in range(hops):
        best = best.scatter_reduce(0, edges[:, 1], best[edges[:, 0]], "amax")
    return best


def tolerant(score: Tensor, attack: Tensor, edges: Tensor, hops: int) -> tuple[Tensor, Tensor]:
    """Scores [n] and truths bool [n] that give the tolerant precision and recall at every threshold.

    A node of the attack has the best score of the attack's nodes around it; other nodes near the attack are left out.
    """
    left = attack | ~near(attack, edges, hops)
    return torch.where(attack, best_near(score, attack, edges, hops), score)[left], attack[left]


def matthews(found: Tensor, truth: Tensor) -> Tensor:
    """Matthews' correlation of alarms and truth, both bool [n]: -1 ... 1, 0 where one of them is constant."""
    a, b = found.double(), truth.double()
    a, b = a - a.mean(), b - b.mean()
    norm = a.norm() * b.norm()
    return (a @ b / norm if norm > 0 else norm * 0).float()


def tolerant_matthews(found: Tensor, attack: Tensor, edges: Tensor, hops: int) -> Tensor:
    """The same with tolerance: false alarms near the attack are left out, and misses near a hit count as hits."""
    hit = attack & near(attack & found, edges, hops)
    alarm = found & ~attack
    left = ~(alarm & near(attack, edges, hops))
    return matthews((hit | alarm)[left], attack[left])


def ranking(score: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Area under the ROC curve and average precision, in percent; nothing if one of both kinds is missing.

    Args:
        score: float [n], high for what is anomalous.
        truth: bool [n].
    """
    if not truth.any() or truth.all():
        return {}
    # Ranks in place of scores: the functions take what is outside of [0, 1] for logits, and would squash ties together.
    rank = torch.unique(score, return_inverse=True)[1].double()
    share = rank / rank.max().clamp(min=1)
    return {
        "auc": 100 * binary_auroc(share, truth.long()),
        "ap": 100 * binary_average_precision(share, truth.long()),
    }
