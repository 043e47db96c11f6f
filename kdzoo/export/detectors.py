"""Write detectors of anomalous nodes, and read them again: torch_geometric alone makes the same networks."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdzoo import __version__
from kdzoo.errors import UserError
from kdzoo.export.condensed_graph import stored
from kdzoo.files import whole_folder

README = """# Detectors of anomalous nodes in provenance graphs

{count} networks that know the types of benign nodes, trained by kdzoo {version} on a graph of {nodes} nodes. They run
with torch_geometric alone:

    import json
    import torch
    from safetensors.torch import load_file
    from torch_geometric.nn import {layer}
    from torch_geometric.utils import add_self_loops

    config, weights = json.load(open("config.json")), load_file("detectors.safetensors")

    def anomaly(x, edge_index, type):
        edge_index, found = add_self_loops(edge_index, num_nodes=len(x))[0], []
        for number in range({count}):
            network = {constructor}.eval()
            start = f"{{number}}."
            network.load_state_dict({{k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}})
            logits = network(x, edge_index).double()
            other = logits.scatter(1, type[:, None], -torch.inf).amax(1)
            found.append((other - logits.gather(1, type[:, None])[:, 0]).sigmoid())
        found = torch.stack(found)                       # [{count}, N]: chance of another type
        bound = (1 - config["confidence"]) / (2 - config["confidence"])
        settled = found <= bound                         # the first that is sure decides
        first = settled.int().argmax(0)
        sure = first + found.gather(0, first[None])[0] / bound
        return torch.where(settled.any(0), sure, {count} + found.amin(0)) / {count_and_one}

`x` float32 [N, {features}] are the features that kdzoo's data module `provenance` makes of the events' words,
`edge_index` int64 [2, E] has both directions of every event, `type` int64 [N] the nodes' types; `config.json` names
them, and holds the `threshold` above which a node is anomalous. `kdzoo predict` does all of that for a log.
`graph.safetensors` is the graph that they were trained on: `x`, `label`, and `edges` [E, 2] or an `adjacency`.
"""


def export_detectors(
    detectors: list[nn.Module],
    graph: dict[str, Tensor] | None,
    facts: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Write `NodeNetwork`s into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        detectors: At least one, all of one shape.
        graph: The graph that they were trained on, if it is known.
        facts: What `config.json` holds beside the networks: `spec`, `confidence`, `threshold` ...
        folder: Where to.

    Returns:
        The names of the files.
    """
    first: Any = detectors[0]
    weights = {
        f"{number}.{key}": weight.detach().cpu().clone().contiguous()
        for number, each in enumerate(detectors)
        for key, weight in each.network.state_dict().items()  # type: ignore[union-attr]
    }
    config = {"network": first.name, "arguments": first.arguments, "detectors": len(detectors), **facts}
    with whole_folder(folder) as work:
        save_file(weights, work / "detectors.safetensors")
        if graph is not None:
            held = stored(graph, graph["label"])
            save_file(
                {key: value.cpu().clone().contiguous() for key, value in held.items()}, work / "graph.safetensors"
            )
        text = json.dumps({**config, "version": __version__}, indent=2)
        (work / "config.json").write_text(text, encoding="utf-8")
        text = README.format(
            count=len(detectors),
            count_and_one=len(detectors) + 1,
            version=__version__,
            nodes=0 if graph is None else len(graph["x"]),
            layer=first.constructor.partition("(")[0],
            constructor=first.constructor,
            features=first.arguments["features"],
        )
        (work / "README.md").write_text(text, encoding="utf-8")
        return sorted(path.name for path in work.iterdir())


def read_detectors(folder: Path, make: Any) -> tuple[list[Any], dict[str, Any]]:
    """Read an export; `make(name, **arguments)` makes a network.

    Raises:
        UserError: The folder is no such export, or is damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "detectors.safetensors")
        detectors = []
        for number in range(config["detectors"]):
            detector = make(config["network"], **config["arguments"])
            own = {k.removeprefix(f"{number}."): v for k, v in weights.items() if k.startswith(f"{number}.")}
            detector.network.load_state_dict(own)
            detectors.append(detector.eval())
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"'{folder}' holds no intact export of detectors ({type(error).__name__}: {reason})."
        ) from error
    return detectors, config
