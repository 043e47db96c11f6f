"""A condensed graph as a folder that loads into torch_geometric without kdzoo: safetensors and JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdzoo import __version__
from kdzoo.errors import UserError
from kdzoo.files import whole_folder

TENSORS, FACTS = "graph.safetensors", "graph.json"
FORMAT = "kdzoo condensed graph 1"
DENSE = 0.2  # share of edges from which the adjacency takes less room as a matrix: 4 bytes against 20

README = """# {nodes} nodes in place of a graph, by {method}, exported by kdzoo {version}

    from safetensors.torch import load_file
    from torch_geometric.data import Data

    graph = load_file("graph.safetensors")
{edges}
    data = Data(x=graph["x"], edge_index=edges, edge_weight=weight, y=graph["label"])

A network that was trained on these classifies the nodes of the real graph, whose features have to be scaled as they
were for the condensation: each row divided by its sum. Without any edge, every node has only its own loop.
{labels}
"""
LISTED = '    edges, weight = graph["edges"].T, graph.get("weight")'
NORMAL = """    matrix = graph["matrix"]  # as networks take it: normalize=False, add_self_loops=False
    edges = matrix.nonzero().T
    weight = matrix[edges[0], edges[1]]"""
MATRIX = '    edges = graph["adjacency"].nonzero().T\n    weight = graph["adjacency"][edges[0], edges[1]]'
HARD = "`label` are int64 class numbers; their names are in `graph.json`."
SOFT = "`label` are float32 probabilities of each class; the names of the classes are in `graph.json`."


def stored(graph: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """What is written of a graph: `x`, `label`, and `adjacency` [n, n] or `edges` [E, 2] with `weight` [E] if any.

    A graph that has its normalised adjacency as `matrix` [n, n] is written with that alone.

    Args:
        graph: See `kdzoo.graph.reducers`.
        labels: Its labels: int64 [n], or probabilities [n, C].
    """
    size, edges = len(graph["x"]), graph["edges"]
    tensors = {"x": graph["x"].float(), "label": labels}
    if "matrix" in graph:
        tensors["matrix"] = graph["matrix"].float()
    elif "weight" in graph and len(edges) > DENSE * size**2:
        matrix = torch.zeros(size, size, device=edges.device)
        matrix[edges[:, 0], edges[:, 1]] = graph["weight"].float()
        tensors["adjacency"] = matrix
    else:
        tensors["edges"] = edges
        if "weight" in graph:
            tensors["weight"] = graph["weight"].float()
    return tensors


def size_in_bytes(graph: dict[str, Tensor], labels: Tensor) -> int:
    """Bytes of what is written: float features, labels, and the adjacency."""
    return sum(tensor.numel() * tensor.element_size() for tensor in stored(graph, labels).values())


def export_condensed_graph(graph: dict[str, Tensor], labels: Tensor, facts: dict[str, Any], folder: Path) -> list[str]:
    """Write a condensed graph into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        graph: See `stored`.
        labels: See `stored`.
        facts: What `graph.json` holds: at least `method` and `spec` (classes, features, names).
        folder: Where to.

    Returns:
        The names of the files.
    """
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in stored(graph, labels).items()}
    text = README.format(
        nodes=len(labels),
        method=facts["method"],
        version=__version__,
        edges=NORMAL if "matrix" in tensors else MATRIX if "adjacency" in tensors else LISTED,
        labels=SOFT if labels.is_floating_point() else HARD,
    )
    with whole_folder(folder) as work:
        save_file(tensors, work / TENSORS)
        held = json.dumps({"format": FORMAT, **facts, "version": __version__}, indent=2)
        (work / FACTS).write_text(held, encoding="utf-8")
        (work / "README.md").write_text(text, encoding="utf-8")
        return sorted(path.name for path in work.iterdir())


def read_condensed_graph(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `export_condensed_graph` wrote: `x`, `edges`, `label`, `weight` and `matrix` if any; and the facts.

    Raises:
        UserError: There is no intact condensed graph in the folder.
    """
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is '{facts['format']}', not '{FORMAT}'")
        x, label, spec = tensors["x"], tensors["label"], facts["spec"]
        if x.shape != (len(label), spec["features"]) or not torch.isfinite(x).all():
            raise ValueError(f"its features are not finite numbers, {spec['features']} of each node")
        if label.is_floating_point() and label.shape[1:] != (spec["classes"],):
            raise ValueError("its labels are no probabilities of its classes")
        if not label.is_floating_point() and not ((label >= -1) & (label < spec["classes"])).all():
            raise ValueError(f"its labels are not classes 0 ... {spec['classes'] - 1}")
        if "adjacency" in tensors or "matrix" in tensors:
            adjacency = tensors.pop("adjacency") if "adjacency" in tensors else tensors["matrix"]
            if adjacency.shape != (len(x), len(x)):
                raise ValueError("its adjacency is no matrix of its nodes")
            tensors["edges"] = adjacency.nonzero()
            tensors["weight"] = adjacency[adjacency != 0]
        edges = tensors["edges"]
        if edges.shape[1:] != (2,) or not ((edges >= 0) & (edges < len(x))).all():
            raise ValueError("an edge names a node that it has not")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no intact condensed graph ({error}): export it again.") from error
    return tensors, facts
