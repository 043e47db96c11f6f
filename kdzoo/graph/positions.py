"""Where the nodes of a graph lie: DeepWalk's vectors, from random walks alone.

    max over u, v:  sum over pairs (i, j) of a walk, at most `window` apart, of
                    log sigmoid(u_i . v_j) + sum over `negatives` nodes k of log sigmoid(-u_i . v_k)

A node's window is drawn anew each time, 1 ... `window`, and k in proportion to degree^0.75. Source: Perozzi et al.,
arXiv 1403.6652, with the negative sampling of Mikolov et al., arXiv 1310.4546, in place of hierarchical softmax, and
Adam.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdzoo.errors import UserError


@dataclass(frozen=True)
class DeepWalk:
    """How positions are learned.

    Args:
        size: Length of a position.
        walks: Walks that start at each node.
        length: Nodes of a walk.
        window: How far apart the nodes of a pair are in a walk, at most.
        negatives: Nodes that each pair is told from.
        epochs: How often all walks are gone through.
        lr: Learning rate of Adam.
        batch: Pairs of a step.
    """

    size: int = 64
    walks: int = 5
    length: int = 50
    window: int = 5
    negatives: int = 5
    epochs: int = 1
    lr: float = 0.01
    batch: int = 8192

    def __post_init__(self) -> None:
        if min(self.size, self.walks, self.window, self.negatives, self.epochs, self.batch) < 1 or self.lr <= 0:
            raise UserError("DeepWalk needs a positive lr, and everything else 1 or more.")
        if self.length < 2:
            raise UserError(f"A walk of length={self.length} has no pairs: give 2 or more.")


def random_walks(edges: Tensor, starts: Tensor, nodes: int, length: int, random: torch.Generator) -> Tensor:
    """Walk along edges [E, 2] from nodes [W] that have a neighbour: the nodes passed, int64 [W, length]."""
    order = edges[:, 0].argsort(stable=True)
    targets, degree = edges[order, 1], edges[:, 0].bincount(minlength=nodes)
    first = degree.cumsum(0) - degree
    walk = [starts]
    for _ in range(length - 1):
        here = walk[-1]
        step = (torch.rand(len(here), generator=random) * degree[here]).long().clamp(max=degree[here] - 1)
        walk.append(targets[first[here] + step])
    return torch.stack(walk, 1)


def pairs_of(walks: Tensor, window: int, random: torch.Generator) -> Tensor:
    """The pairs (a node, one of its window) of walks [W, length] in random order, int64 [P, 2]."""
    reach = torch.randint(1, window + 1, walks.shape, generator=random)
    found = []
    for offset in range(1, min(window, walks.shape[1] - 1) + 1):
        left, right = walks[:, :-offset], walks[:, offset:]
        for centre, other, far in ((left, right, reach[:, :-offset]), (right, left, reach[:, offset:])):
            near = far >= offset
            found.append(torch.stack([centre[near], other[near]], 1))
    pairs = torch.cat(found)
    return pairs[torch.randperm(len(pairs), generator=random)]


def deepwalk(edges: Tensor, nodes: int, how: DeepWalk, seed: int) -> Tensor:
    """Learn the positions of a graph's nodes; a node without neighbours stays at the origin.

    Args:
        edges: int64 [E, 2], both directions of every edge, without loops.
        nodes: N.
        how: The settings.
        seed: Of the walks, the start and the negatives.

    Returns:
        float32 [N, size], on the device of the edges.
    """
    device, edges = edges.device, edges.cpu()
    random = torch.Generator().manual_seed(seed)
    degree = edges[:, 0].bincount(minlength=nodes)
    near = torch.nn.Embedding(nodes, how.size, sparse=True)
    far = torch.nn.Embedding(nodes, how.size, sparse=True)
    with torch.no_grad():
        near.weight.copy_((torch.rand(nodes, how.size, generator=random) - 0.5) / how.size)
        far.weight.zero_()
    adam = torch.optim.SparseAdam([near.weight, far.weight], lr=how.lr)
    often = degree.float() ** 0.75
    with torch.enable_grad():
        for pairs in _batches(edges, degree, how, random):
            negatives = torch.multinomial(often, len(pairs) * how.negatives, True, generator=random)
            u, v = near(pairs[:, 0]), far(pairs[:, 1])  # [P, size]
            others = far(negatives.view(len(pairs), -1))  # [P, negatives, size]
            right = logsigmoid((u * v).sum(1))
            wrong = logsigmoid(-(others @ u[:, :, None])[:, :, 0]).sum(1)
            adam.zero_grad()
            (-(right + wrong).mean()).backward()
            adam.step()
    return (near.weight.detach() * (degree > 0)[:, None]).to(device)


def _batches(edges: Tensor, degree: Tensor, how: DeepWalk, random: torch.Generator) -> Iterator[Tensor]:
    joined = (degree > 0).nonzero()[:, 0]
    at_once = max(1, how.batch * 32 // (how.length * how.window))  # walks, so that the memory does not grow with N
    for _ in range(how.epochs * how.walks if len(joined) else 0):
        for starts in joined[torch.randperm(len(joined), generator=random)].split(at_once):
            walks = random_walks(edges, starts, len(degree), how.length, random)
            yield from pairs_of(walks, how.window, random).split(how.batch)
