"""Write a classifier of nodes, and read it again: torch_geometric alone makes the same network."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from kdzoo import __version__
from kdzoo.errors import UserError
from kdzoo.files import whole_folder

README = """# {name}

A classifier of {classes} kinds of nodes, trained by kdzoo {version}. It runs with torch_geometric alone:

    from safetensors.torch import load_file
    from torch_geometric.nn import {layer}

    network = {constructor}
    network.load_state_dict(load_file("model.safetensors"))
    logits = network.eval()({inputs})

`x` is float32 [N, {features}], each row divided by its sum as in the training; `edge_index` int64 [2, E] has both
directions of every edge. `config.json` names the classes.
"""
POSITIONS = """
The last {size} columns of `x` are the node's position: the rows of `position` in `positions.safetensors` are those of
the nodes `index`. A node that is not among them has the mean of its neighbours' positions, or zeros.
"""


def export_node_network(
    network: Any,
    spec: dict[str, Any],
    folder: Path,
    scores: dict[str, float] | None = None,
    positions: dict[str, Tensor] | None = None,
) -> list[str]:
    """Write a `NodeNetwork` into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        network: What to write.
        spec: The spec of the data that it was trained on.
        folder: Where to.
        scores: Its test scores.
        positions: `position` float32 [n, D] of the nodes `index` int64 [n], where the network takes them after the
            features.

    Returns:
        The names of the files: `model.safetensors` (as torch_geometric names the weights), `config.json`, `README.md`,
        and `positions.safetensors`.
    """
    config = {"network": network.name, "arguments": network.arguments, "spec": spec, "scores": scores or {}}
    with whole_folder(folder) as work:
        weights = {key: weight.detach().cpu().contiguous() for key, weight in network.network.state_dict().items()}
        save_file(weights, work / "model.safetensors")
        (work / "config.json").write_text(json.dumps({**config, "version": __version__}, indent=2), encoding="utf-8")
        text = README.format(
            name=network.name,
            classes=network.arguments["classes"],
            features=network.arguments["features"],
            version=__version__,
            constructor=network.constructor,
            layer=network.constructor.partition("(")[0],
            inputs="x" if network.name == "mlp" else "x, edge_index",
        )
        if positions is not None:
            save_file(
                {name: each.cpu().contiguous() for name, each in positions.items()}, work / "positions.safetensors"
            )
            text += POSITIONS.format(size=positions["position"].shape[1])
        (work / "README.md").write_text(text, encoding="utf-8")
        return sorted(path.name for path in work.iterdir())


def read_node_network(folder: Path, make: Any) -> tuple[Any, dict[str, Any]]:
    """Read an export; `make(name, **arguments)` makes the network.

    Args:
        folder: The export, or the run's folder.
        make: `NodeNetwork`.

    Returns:
        The network, and the whole `config.json`.

    Raises:
        UserError: The folder is no such export, or is damaged.
    """
    inner = folder / "export" if (folder / "export").is_dir() else folder
    try:
        config = json.loads((inner / "config.json").read_text(encoding="utf-8"))
        network = make(config["network"], **config["arguments"])
        network.network.load_state_dict(load_file(inner / "model.safetensors"))
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"'{folder}' holds no intact export of a node classifier ({type(error).__name__}: {reason})."
        ) from error
    return network, config
