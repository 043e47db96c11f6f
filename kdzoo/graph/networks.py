"""Networks that classify the nodes of a graph: torch_geometric's own, by name."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.errors import UserError, near

try:
    from torch_geometric.nn import GAT, GCN, GIN, MLP, GraphSAGE, SGConv
except ImportError as error:
    raise UserError("The graph family needs torch_geometric: pip install 'kdzoo[graph]'.") from error

LAYERS: dict[str, Any] = {"mlp": MLP, "sgc": SGConv, "gcn": GCN, "sage": GraphSAGE, "gat": GAT, "gin": GIN}


def check_name(name: str) -> None:
    """Raise a `UserError` if there is no graph network of this name."""
    if name not in LAYERS:
        raise UserError(f"There is no graph network '{name}'.{near(name, list(LAYERS))} All: {', '.join(LAYERS)}.")


def matrix_of_edges(edges: Tensor, nodes: int) -> Tensor:
    """Edges int64 [E, 2] (from, to) as a sparse matrix [N, N] of ones, where row i gathers what comes to node i.

    A GraphSAGE or GIN takes it for the edges, and gathers twice as fast: worth it where many steps see one graph.
    """
    source, target = edges[edges[:, 1].argsort(stable=True)].T
    first = torch.cat([target.new_zeros(1), target.bincount(minlength=nodes).cumsum(0)])
    values = torch.ones(len(edges), device=edges.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(first, source, values, (nodes, nodes), check_invariants=False)


class NodeNetwork(nn.Module):
    """One of torch_geometric's networks, with one call for all: features and edges to logits.

    Args:
        name: `gcn`, `sage` (GraphSAGE), `gat`, `gin`, `sgc` or `mlp`, which does not look at the edges.
        features: F, features of a node.
        classes: C.
        hidden: width of the layers between.
        layers: number of layers, 1 or more; `sgc` propagates so many times.
        dropout: probability in training, after every hidden layer.
        norm: `batch_norm`, `layer_norm`, or None, after every hidden layer.
        normalize: let every layer's output have length 1; GraphSAGE alone.

    Raises:
        UserError: There is no network of this name, or a number is out of range.
    """

    def __init__(
        self,
        name: str,
        features: int,
        classes: int,
        hidden: int = 128,
        layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        check_name(name)
        if hidden < 1 or layers < 1 or not 0 <= dropout < 1:
            raise UserError(f"'{name}' needs hidden={hidden} and layers={layers} of 1 or more, dropout={dropout} < 1.")
        self.name = name
        self.arguments: dict[str, Any] = {"features": features, "classes": classes, "hidden": hidden, "layers": layers}
        self.arguments |= {"dropout": dropout, "norm": norm}
        layer = LAYERS[name]
        options: dict[str, Any] = {"dropout": dropout, "norm": norm}
        if normalize:
            if name != "sage":
                raise UserError(f"'{name}' cannot normalize its layers' outputs: leave it out, or give sage.")
            self.arguments["normalize"] = options["normalize"] = True
        sizes: tuple[Any, ...] = (features, hidden, layers, classes)
        if name == "mlp":
            sizes = ([features, *[hidden] * (layers - 1), classes],)
        elif name == "sgc":
            sizes, options = (features, classes, layers), {}
        self.network: Any = layer(*sizes, **options)
        said = [repr(size) for size in sizes] + [f"{option}={value!r}" for option, value in options.items()]
        self.constructor = f"{layer.__name__}({', '.join(said)})"  # what makes the same network without kdzoo

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Features float32 [N, F] and edges int64 [E, 2], or a matrix (`matrix_of_edges`), to logits [N, C]."""
        if self.name == "mlp":
            return self.network(x)
        return self.network(x, edges if edges.layout == torch.sparse_csr else edges.T)

    def forward_with(self, x: Tensor, edges: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and `hidden`: what the last hidden layer says before its norm and activation, [N, hidden].

        Raises:
            UserError: The network has no hidden layer, or there is another tap.
        """
        layers = getattr(self.network, "lins" if self.name == "mlp" else "convs", [])
        if list(taps) != ["hidden"] or len(layers) < 2:
            raise UserError(f"'{self.name}' with {self.arguments['layers']} layers has nothing at {list(taps)}.")
        found: dict[str, Tensor] = {}
        hook = layers[-2].register_forward_hook(lambda layer, inputs, output: found.update(hidden=output))
        try:
            return self(x, edges), found
        finally:
            hook.remove()
