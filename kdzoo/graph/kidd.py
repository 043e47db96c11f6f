"""KiDD: a few graphs from which kernel ridge regression tells the classes of the real ones; it trains no network.

    loss = CE(K_ts (K_ss + lambda tr(K_ss)/n I)^-1 Y_s, y_t) + orthogonality * |K_ss / (d d^T) - I|,  d = diag(K_ss)^1/2
    K(G, G') = mean over nodes i, j of the L - 1 times gathered  h_i.h_j k0(c) + k1(c),   h = A X,  c = cos(h_i, h_j)
    k0(c) = (pi - acos c) / pi,   k1(c) = (c (pi - acos c) + sqrt(1 - c^2)) / pi

The kernel is LiteGNTK: a graph network of L layers with one nonlinear layer of infinite width. Gathering and the mean
are linear, so that both are weights of the nodes: w = (A^T)^(L-1) 1 / N, and K = w^T (...) w'. The edges of the small
graphs are logits; sigmoid((logit + logistic noise) / t) are the edges of a step, and t falls from 1 to 0.01. In the end
an edge is a logit above 0.
Source: Xu et al., KDD 2023 (doi 10.1145/3580305.3599398), section 4; the defaults are the authors' code. They clamp
logits to [0, 1] after each step, which makes an edge of any that a gradient has lifted at all; here they are free. A
mean is over a graph's own nodes. An edge that was there from the start keeps its kind, a new one is of the first.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from kdzoo.card import Card
from kdzoo.datamodules.graph_set_data import Graphs
from kdzoo.errors import UserError
from kdzoo.graph.graph_networks import Pool
from kdzoo.graph.small_set import DistilledGraphs, SmallSet
from kdzoo.optim import Optim
from kdzoo.selection import herding, k_center

CARD = Card(
    title="Kernel Ridge Regression-Based Graph Dataset Distillation",
    year=2023,
    family="graph",
    task="graph classification",
    student="any graph network",
    data="labelled graphs",
    code="https://github.com/pricexu/KIDD",
    tags=("graph distillation", "kernel"),
)

SMALL = 1e-4  # of every loop and every product, so that no vector is zero
START = 5.0  # of the logits


class KiDD(DistilledGraphs):
    """Distils by kernel ridge regression, then trains the student on the result.

    Args:
        per_class: Small graphs of each class.
        init: Which real graphs they start from.
        size: Nodes of a small graph, at most, as a multiple of the real graphs' mean.
        iterations: Steps of the distillation.
        batch_real: Real graphs of a step.
        batch_small: Small graphs of a step.
        lr_edges: Learning rate of the edges' logits; 0 leaves the edges alone.
        lr_feat: Learning rate of the features, which stay in [0, 1].
        depth: L.
        ridge: lambda.
        orthogonality: Weight of the second term.
        annealing: Share of the iterations over which t falls.
        batch_size: Graphs of a step of the student.
        student, hidden, layers, dropout, norm, pool, optim: As for `GraphClassifier`.
    """

    def __init__(
        self,
        per_class: int = 10,
        init: Literal["random", "herding", "k_center"] = "herding",
        size: float = 2.0,
        iterations: int = 300,
        batch_real: int = 128,
        batch_small: int = 16,
        lr_edges: float = 1e-6,
        lr_feat: float = 1e-4,
        depth: int = 5,
        ridge: float = 1e-6,
        orthogonality: float = 1e-3,
        annealing: float = 2 / 3,
        batch_size: int = 128,
        student: str = "gin",
        hidden: int = 64,
        layers: int = 5,
        dropout: float = 0.0,
        norm: str | None = "batch_norm",
        pool: Pool = "mean",
        optim: Optim = Optim(name="adam", lr=1e-3, weight_decay=5e-4, schedule="constant"),
    ) -> None:
        super().__init__(None, batch_size, student, hidden, layers, dropout, norm, pool, optim)
        if min(per_class, batch_real, batch_small, depth) < 1 or iterations < 0 or size <= 0 or ridge <= 0:
            raise UserError(
                f"KiDD: per_class={per_class}, batch_real={batch_real}, batch_small={batch_small} and depth={depth} "
                f"must be 1 or more, iterations={iterations} 0 or more, size={size} and ridge={ridge} above 0."
            )
        self.least_per_class = per_class
        self.per_class, self.init, self.size, self.iterations = per_class, init, size, iterations
        self.batch_real, self.batch_small, self.depth, self.ridge = batch_real, batch_small, depth, ridge
        self.lr_edges, self.lr_feat = lr_edges, lr_feat
        self.orthogonality, self.annealing = orthogonality, annealing

    def distil(self, graphs: Graphs) -> SmallSet:
        """Choose the graphs to start from, and let them learn."""
        random = torch.Generator().manual_seed(self.seed)
        chosen = graphs.take(self.choose(graphs, random))
        most = max(1, round(self.size * float(graphs.nodes.float().mean())))
        x, logits, kind = (each.to(self.device) for each in padded(chosen, most))
        x.requires_grad_()
        logits.requires_grad_()
        adam = torch.optim.Adam([{"params": [x], "lr": self.lr_feat}, {"params": [logits], "lr": self.lr_edges}])
        order: list[Tensor] = []
        with torch.enable_grad():
            for iteration in range(self.iterations):
                order = order or list(torch.randperm(len(graphs), generator=random).split(self.batch_real))
                real = graphs.take(order.pop())
                some = torch.randperm(len(x), generator=random)[: self.batch_small].to(self.device)
                noise = torch.rand(logits[some].shape, generator=random).to(self.device)
                edges = soft_edges(logits[some], noise, temperature(iteration / self.iterations / self.annealing))
                loss = self.regression(x[some], edges, chosen.labels.to(self.device)[some], real)
                adam.zero_grad()
                loss.backward()
                adam.step()
                x.data.clamp_(0, 1)
        made = as_graphs(x.detach().cpu(), logits.detach().cpu(), kind.cpu(), chosen.labels)
        return SmallSet(made, torch.ones(len(made)))

    def choose(self, graphs: Graphs, random: torch.Generator) -> Tensor:
        """Rows of `per_class` graphs of each class, by what their nodes gather on average."""
        union = graphs.union()
        gathered = union["x"].index_add(0, union["edges"][:, 1], union["x"][union["edges"][:, 0]])
        mean = torch.zeros(len(graphs), gathered.shape[1]).index_add_(0, union["graph"], gathered)
        mean = mean / graphs.nodes.clamp(min=1)[:, None]
        rows = []
        for label in graphs.labels.unique().tolist():
            own = (graphs.labels == label).nonzero()[:, 0]
            if len(own) < self.per_class:
                raise UserError(
                    f"KiDD: per_class={self.per_class}, but class {label} has {len(own)} graphs: give fewer."
                )
            if self.init == "random":
                rows.append(own[torch.randperm(len(own), generator=random)[: self.per_class]])
            else:
                rows.append(own[(herding if self.init == "herding" else k_center)(mean[own], self.per_class)])
        return torch.cat(rows)

    def regression(self, x: Tensor, edges: Tensor, label: Tensor, real: Graphs) -> Tensor:
        """The loss of a step, of small graphs x [n, S, F] with edges [n, S, S] and real ones."""
        # In double precision: a graph without edges has a kernel of 1e-33, and K_ss is close to singular.
        small = dense_side(x.double(), edges.double(), self.depth)
        others = sparse_side(real, self.depth, x.device)
        own = kernel(small, small)  # [n, n]
        one = torch.eye(len(own), device=x.device, dtype=own.dtype)
        targets = one_hot(label, (self.spec or {})["classes"]).double()
        solved = torch.linalg.solve(own + self.ridge * own.trace() / len(own) * one, targets)
        said = kernel(others, small) @ solved  # [N, C]
        scale = own.diagonal().sqrt()
        apart = (own / scale[:, None] / scale - one).norm()
        return cross_entropy(said, real.labels.to(x.device)) + self.orthogonality * apart


Side = tuple[Tensor, Tensor, Tensor, int]  # h [N, F + 1], weights [N], graph of each node [N], graphs


def kernel(one: Side, other: Side) -> Tensor:
    """LiteGNTK of the graphs of two sides, [G, G']."""
    (a, w, of_a, rows), (b, v, of_b, columns) = one, other
    product = a @ b.T
    cosine = product / (a.norm(dim=1)[:, None] * b.norm(dim=1) + 1e-6)
    cosine = cosine.clamp(-0.9999, 0.9999)  # the slopes at 1 are infinite
    angle = (math.pi - cosine.acos()) / math.pi
    values = w[:, None] * v * (product * angle + cosine * angle + (1 - cosine**2).sqrt() / math.pi)
    by_row = values.new_zeros(rows, len(b)).index_add(0, of_a, values)
    return by_row.new_zeros(rows, columns).index_add(1, of_b, by_row)


def dense_side(x: Tensor, edges: Tensor, depth: int) -> Side:
    """What the kernel takes of graphs with features [n, S, F] and adjacencies [n, S, S]."""
    count, size, _ = x.shape
    adjacency = edges + SMALL * torch.eye(size, device=x.device)
    constant = x.new_full((count, size, 1), math.sqrt(SMALL))
    weight = x.new_ones(count, 1, size) / size
    for _ in range(depth - 1):
        weight = weight @ adjacency
    h = adjacency @ torch.cat([x, constant], 2)
    return h.flatten(0, 1), weight.flatten(), torch.arange(count, device=x.device).repeat_interleave(size), count


def sparse_side(graphs: Graphs, depth: int, device: torch.device) -> Side:
    """What the kernel takes of real graphs, in double precision."""
    union = {key: value.to(device) for key, value in graphs.union().items()}
    source, target = union["edges"].T
    x = union["x"].double()
    x = torch.cat([x, x.new_full((len(x), 1), math.sqrt(SMALL))], 1)
    weight = 1 / graphs.nodes.to(device).double()[union["graph"]]
    for _ in range(depth - 1):
        weight = (SMALL * weight).index_add(0, source, weight[target])
    h = (SMALL * x).index_add(0, target, x[source])
    return h, weight, union["graph"], len(graphs)


def soft_edges(logits: Tensor, noise: Tensor, t: float) -> Tensor:
    """Symmetric edges in (0, 1) without loops, of logits and uniform noise [n, S, S]: their upper triangles count."""
    drawn = logits + noise.clamp(1e-6, 1 - 1e-6).logit()
    upper = (drawn / t).sigmoid().triu(1)
    return upper + upper.mT


def temperature(progress: float) -> float:
    """From 1 to 0.01, by equal factors, over a progress of 0 ... 1."""
    return float(0.01 ** min(1.0, progress))


def padded(graphs: Graphs, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [n, S, F], logits of the edges [n, S, S] and their kinds; nodes beyond S are left out."""
    count = len(graphs)
    x = torch.zeros(count, most, graphs.x.shape[1])
    logits = torch.full((count, most, most), -START)
    kind = torch.zeros(count, most, most, dtype=torch.int64)
    for number in range(count):
        one = graphs.take([number])
        size = min(most, len(one.x))
        x[number, :size] = one.x[:size]
        inside = (one.edges < size).all(1)
        rows, columns = one.edges[inside].T
        logits[number, rows, columns] = START
        kind[number, rows, columns] = one.kind[inside]
    return x, logits, kind


def as_graphs(x: Tensor, logits: Tensor, kind: Tensor, label: Tensor) -> Graphs:
    """The small graphs with whole edges; nodes that have neither an edge nor a feature are left out."""
    edges, kinds, nodes, features = [], [], [], []
    for one, logit, of in zip(x, logits, kind):
        there = (logit > 0).triu(1)
        there = there | there.T
        kept = (there.any(1) | (one != 0).any(1)).nonzero()[:, 0]
        kept = kept if len(kept) else torch.zeros(1, dtype=torch.int64)
        pairs = there[kept][:, kept].nonzero()
        edges.append(pairs)
        kinds.append(of[kept][:, kept][pairs[:, 0], pairs[:, 1]])
        nodes.append(len(kept))
        features.append(one[kept])
    return Graphs(
        images=torch.cat(features),
        labels=label,
        edges=torch.cat(edges),
        kind=torch.cat(kinds),
        nodes=torch.tensor(nodes),
        bonds=torch.tensor([len(pairs) for pairs in edges]),
    )
