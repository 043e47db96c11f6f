"""Write a classifier of graphs as a program that torch alone runs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from kdzoo import __version__
from kdzoo.console import quieten
from kdzoo.files import whole_folder

README = """# A classifier of graphs

{classes} classes, trained by kdzoo {version}. It runs with torch alone:

    import torch

    network = torch.export.load("model.pt2").module()
    logits = network(x, edges, kind, graph, index)  # [B, {classes}]

`x` float32 [N, {features}] are the features of the nodes of B graphs, `edges` int64 [E, 2] (from, to; both directions
of every edge), `kind` int64 [E] the edges' kinds (below {kinds}), `graph` int64 [N] says which graph a node is of, and
`index` int64 [B] is any tensor of that length. There must be two or more nodes, edges and graphs. `config.json` names
the classes.
"""

GRAPHS = """
`graphs.safetensors` is the small set that it was trained on: G graphs one after the other, `nodes` and `bonds` [G] rows
of `x` and of `edges` and `kind` each, with `labels` and `weight` [G]. The numbers in `edges` are those inside a graph.
Where there are `root` and `degree`, the graphs are patterns of computation trees: pool the roots alone, and let a GCN
divide by these degrees.
"""


class WithoutDegrees(nn.Module):
    """A `GraphNetwork` with the inputs that whole graphs have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, edges: Tensor, kind: Tensor, graph: Tensor, index: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.network(x, edges, kind, graph, index)


def export_graph_network(
    network: nn.Module,
    spec: dict[str, Any],
    folder: Path,
    scores: dict[str, float] | None = None,
    graphs: dict[str, Tensor] | None = None,
) -> list[str]:
    """Write a `GraphNetwork` into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        network: What to write.
        spec: The spec of the data that it was trained on.
        folder: Where to.
        scores: Its test scores.
        graphs: The tensors of the small set that it was trained on, if there is one.

    Returns:
        The names of the files: `model.pt2` (of `torch.export`), `config.json`, `README.md`, and `graphs.safetensors`.
    """
    quieten()
    device = next(network.parameters()).device
    edges = torch.tensor([[0, 1], [1, 0], [2, 3], [3, 2], [3, 4], [4, 3]])
    graph = torch.tensor([0, 0, 1, 1, 1])
    sample = (torch.zeros(5, spec["features"]), edges, torch.zeros(6, dtype=torch.int64), graph, torch.arange(2))
    many, bonds, several = Dim("nodes", min=2), Dim("edges", min=2), Dim("graphs", min=2)
    shapes = ({0: many}, {0: bonds}, {0: bonds}, {0: many}, {0: several})
    training = network.training
    program = torch.export.export(
        WithoutDegrees(network).eval(), tuple(each.to(device) for each in sample), dynamic_shapes=shapes
    )
    network.train(training)
    with whole_folder(folder) as work:
        torch.export.save(program, work / "model.pt2")
        config = {"spec": spec, "scores": scores or {}, "version": __version__}
        (work / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        if graphs:
            save_file(graphs, work / "graphs.safetensors")
        text = README.format(
            classes=spec["classes"], features=spec["features"], kinds=spec["kinds"], version=__version__
        )
        (work / "README.md").write_text(text + (GRAPHS if graphs else ""), encoding="utf-8")
        return sorted(path.name for path in work.iterdir())
