"""The spec of a data set: a plain dict of what shapes networks (classes, channels, image size ...) and its batches."""

from collections.abc import Mapping
from typing import Any

from kdzoo.errors import UserError

# What a network is shaped by. The other keys of a spec describe the data (names, statistics, batch keys).
DESCRIPTIVE = {"class_names", "mean", "std", "keys", "labelled"}
# What data of a modality are, in words, and a data module of them.
EXAMPLES = {
    "image": "images, such as fashion_mnist",
    "segmentation": "data with masks, such as scenes",
    "super_resolution": "data with a scale, such as sr_folder",
    "node_graph": "a graph whose nodes have labels, such as debian_dependencies",
    "graph": "data of many labelled graphs, such as molecules",
    "radiance_field": "posed images, such as mesh_scene",
}


def check_spec(have: Mapping[str, Any], got: Mapping[str, Any], what: str, source: str = "the data") -> None:
    """Raise a `UserError` if two specs shape networks differently.

    Args:
        have: The spec that `what` was made for.
        got: The spec that it is to be used with.
        what: What was made, for the message.
        source: Where `got` comes from, for the message.
    """
    for key in sorted((have.keys() | got.keys()) - DESCRIPTIVE):
        if have.get(key) != got.get(key):
            raise UserError(
                f"{what} was made for {key} = {have.get(key)}, but {source} has {key} = {got.get(key)}: "
                "use the data that it was made for, or train it again on these."
            )
    known, names = list(have.get("class_names") or ()), list(got.get("class_names") or ())
    if known and names and known != names:
        first = next(pair for pair in zip(known, names) if pair[0] != pair[1])
        raise UserError(f"{what} knows other classes than {source}: '{first[0]}' where {source} has '{first[1]}'.")
