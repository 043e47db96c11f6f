"""Classifiers of nodes that were trained before, as teachers."""

from pathlib import Path
from typing import Any

from kdzoo.errors import UserError
from kdzoo.export.node_network import read_node_network
from kdzoo.graph.networks import NodeNetwork
from kdzoo.spec import check_spec
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.recipe import read_config
from kdzoo.teachers.recipe import trained as train_recipe

SIZES = ("hidden", "layers", "norm")  # what of a method's arguments makes its network


def load_teacher(given: list[sources.Teacher], spec: dict[str, Any]) -> tuple[FrozenTeacher, dict[str, Any]]:
    """Load classifiers of nodes as a teacher, and say who they are: `source`, `hash`, `parameters`, `scores`.

    Raises:
        UserError: A source is missing or damaged, or was made for other data.
    """
    return sources.freeze(given, [_network(teacher, spec) for teacher in given], inputs=("x", "edges"))


def _network(teacher: sources.Teacher, spec: dict[str, Any]) -> tuple[NodeNetwork, dict[str, float]]:
    if sources.untrained() and not (teacher.checkpoint and Path(teacher.checkpoint).exists()):
        model = read_config(teacher.recipe, teacher.set)["model"].get("init_args", {}) if teacher.recipe else {}
        sizes = {name: model[name] for name in SIZES if name in model}
        return NodeNetwork(model.get("student", "sage"), spec["features"], spec["classes"], **sizes), {}
    folder = train_recipe(teacher.recipe, teacher.set) if teacher.recipe else Path(str(teacher.checkpoint))
    network, config = read_node_network(folder, NodeNetwork)
    check_spec(config["spec"], spec, f"The teacher '{teacher.source}'")
    if network.arguments["features"] != spec["features"]:
        raise UserError(f"The teacher '{teacher.source}' takes positions of the nodes too: it can only be a student.")
    return network, config["scores"]
