"""Networks that classify whole graphs: message passing over edges of several kinds, then a pool over the nodes.

They are written out here because a pattern graph needs what torch_geometric's layers do not take: a pool over its roots
alone, and a GCN that divides by the degrees that the nodes had in the graph the pattern was cut out of.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from kdzoo.errors import UserError, near

Pool = Literal["sum", "mean"]
NAMES = ("gin", "gcn")


class GIN(nn.Module):
    """Graph isomorphism layer: MLP(x_i + sum_j message_j); a message is x_j, with kinds of edges relu(x_j + e_kind).

    Sources: arXiv 1810.00826, eq. 4.1 with epsilon 0; the kinds of edges as in arXiv 1905.12265.
    """

    def __init__(self, hidden: int, kinds: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(kinds, hidden) if kinds > 1 else None
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def forward(self, x: Tensor, edges: Tensor, kind: Tensor, degree: Tensor) -> Tensor:
        """X [N, H], edges [E, 2], kind [E], degree [N] (not used) to [N, H]."""
        return self.mlp(x.index_add(0, edges[:, 1], messages(x, edges, kind, self.kind)))


class GCN(nn.Module):
    """Graph convolution: the sum over j, and i itself, of message_j / sqrt((d_i + 1) (d_j + 1)); x is made W x first.

    Source: arXiv 1609.02907, eq. 2; the kinds of edges as for `GIN`.
    """

    def __init__(self, hidden: int, kinds: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(kinds, hidden) if kinds > 1 else None
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, edges: Tensor, kind: Tensor, degree: Tensor) -> Tensor:
        """X [N, H], edges [E, 2], kind [E], degree [N] (without the loop) to [N, H]."""
        x, scale = self.linear(x), (degree + 1).to(x.dtype).rsqrt()[:, None]  # [N, 1]
        sent = messages(x, edges, kind, self.kind) * scale[edges[:, 0]]
        return scale * (scale * x).index_add(0, edges[:, 1], sent)


def messages(x: Tensor, edges: Tensor, kind: Tensor, embedding: nn.Embedding | None) -> Tensor:
    """What goes over every edge, [E, H]."""
    sent = x[edges[:, 0]]
    return sent if embedding is None else (sent + embedding(kind)).relu()


class GraphNetwork(nn.Module):
    """Features and edges of a batch of graphs to logits: a linear layer, message passing, a pool, a linear layer.

    Args:
        name: `gin` or `gcn`.
        features: F, features of a node.
        kinds: kinds of edges.
        classes: C.
        hidden: H, width.
        layers: L, steps of message passing: a node's embedding depends on its L-hop neighbourhood.
        dropout: probability in training, after every step but the last and before the last layer.
        norm: `batch_norm`, `layer_norm` or None, after every step.
        pool: how the nodes' embeddings become the graph's.

    Raises:
        UserError: There is no network of this name, or a number is out of range.
    """

    def __init__(
        self,
        name: str,
        features: int,
        kinds: int,
        classes: int,
        hidden: int = 64,
        layers: int = 3,
        dropout: float = 0.0,
        norm: str | None = None,
        pool: Pool = "sum",
    ) -> None:
        super().__init__()
        if name not in NAMES:
            raise UserError(f"There is no network of graphs '{name}'.{near(name, NAMES)} All: {', '.join(NAMES)}.")
        if hidden < 1 or layers < 1 or not 0 <= dropout < 1:
            raise UserError(f"'{name}' needs hidden={hidden} and layers={layers} of 1 or more, dropout={dropout} < 1.")
        norms: dict[str | None, Any] = {None: nn.Identity, "batch_norm": nn.BatchNorm1d, "layer_norm": nn.LayerNorm}
        if norm not in norms or pool not in ("sum", "mean"):
            raise UserError(f"'{name}' knows no norm={norm} with pool={pool}: batch_norm, layer_norm, null; sum, mean.")
        layer = GIN if name == "gin" else GCN
        self.dropout, self.pool, self.layers = dropout, pool, layers
        self.encoder = nn.Linear(features, hidden)
        self.steps = nn.ModuleList(layer(hidden, kinds) for _ in range(layers))
        self.norms = nn.ModuleList(norms[norm](hidden) if norm else nn.Identity() for _ in range(layers))
        self.head = nn.Linear(hidden, classes)

    def embed(self, x: Tensor, edges: Tensor, kind: Tensor, degree: Tensor | None = None) -> Tensor:
        """The nodes' embeddings, [N, H].

        Args:
            x: float32 [N, F].
            edges: int64 [E, 2], from and to.
            kind: int64 [E].
            degree: int64 [N], for `gcn`: how many neighbours a node has; None: as many as the edges say.
        """
        if degree is None:
            ones = torch.ones_like(edges[:, 1])
            degree = torch.zeros_like(x[:, 0], dtype=torch.int64).index_add(0, edges[:, 1], ones)
        x = self.encoder(x)
        for number, (step, norm) in enumerate(zip(self.steps, self.norms), start=1):
            x = norm(step(x, edges, kind, degree))
            if number < self.layers:
                x = dropout(x.relu(), self.dropout, self.training)
        return x

    def forward(
        self,
        x: Tensor,
        edges: Tensor,
        kind: Tensor,
        graph: Tensor,
        index: Tensor,
        degree: Tensor | None = None,
        root: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, C].

        `x`, `edges`, `kind` and `degree` are as for `embed`, those of all graphs. `graph` int64 [N] says which graph a
        node is of; `index` [B] is anything of that length: the number of graphs. `root` bool [N] names the nodes that
        are pooled; None: all.
        """
        nodes = self.embed(x, edges, kind, degree)
        counted = torch.ones_like(nodes[:, :1]) if root is None else root[:, None].to(nodes.dtype)
        pooled = nodes.new_zeros(index.shape[0], nodes.shape[1]).index_add(0, graph, counted * nodes)  # [B, H]
        if self.pool == "mean":
            pooled = pooled / counted.new_zeros(index.shape[0], 1).index_add(0, graph, counted).clamp(min=1)
        return self.head(dropout(pooled, self.dropout, self.training))
