"""Reducers: what makes a small graph of a large one; the plug-in point of the graph family.

A graph is a dict, the same that `GraphData` gives for training: `x` float32 [N, F], `edges` int64 [E, 2] (from, to;
both directions of an undirected edge), `label` int64 [N] (-1: none), and `weight` float32 [E] where the edges have
weights. A small graph has these keys and no other; its nodes need not be nodes of the large one.

Reducers are found through the entry points of the group `kdzoo.reducers`, a plugin's like kdzoo's own.
"""

from typing import Any

import torch
from torch import Tensor

from kdzoo import registry
from kdzoo.errors import UserError

Graph = dict[str, Tensor]


class Reducer:
    """Makes small graphs of large ones. A subclass takes its settings as arguments, each with a default."""

    def reduce(self, graph: Graph, rate: float) -> Graph:
        """Make a graph of `rate` times as many nodes, in (0, 1].

        What is drawn is drawn from torch's generator, so that a run's seed makes it the same again. The labels' shares
        are kept (`shares`), and the graph that is given is not changed.
        """
        raise NotImplementedError


def make_reducer(name: str, **arguments: Any) -> Reducer:
    """Make the reducer that is registered under `name`.

    Raises:
        UserError: There is no such reducer, or it does not take one of the arguments.
    """
    reducer = registry.find(registry.REDUCERS, name).load()
    try:
        made: Reducer = reducer(**arguments)
    except TypeError as error:
        raise UserError(f"The reducer '{name}' does not take these arguments: {error}.") from error
    return made


def budget(graph: Graph, rate: float) -> int:
    """How many nodes a graph of this rate has: at least one.

    Raises:
        UserError: The rate is no share.
    """
    if not 0 < rate <= 1:
        raise UserError(f"A graph cannot be reduced to rate={rate} of its nodes: give a share in (0, 1].")
    return max(1, round(rate * len(graph["x"])))


def shares(label: Tensor, count: int) -> dict[int, int]:
    """How many of `count` nodes each label gets, in proportion to its nodes: label -> 0 or more.

    Every label has at least one if there are as many; the rest goes by largest remainders, ties to the lower label.
    Nodes without a label (-1) get nothing, unless no node has one.
    """
    known = label[label >= 0] if (label >= 0).any() else label
    labels, sizes = (values.tolist() for values in known.unique(return_counts=True))
    count = min(count, len(known))
    floor = 1 if count >= len(labels) else 0
    exact = [size * count / len(known) for size in sizes]
    given = [max(floor, int(part)) for part in exact]
    order = sorted(range(len(labels)), key=lambda place: given[place] - exact[place])
    while (missing := count - sum(given)) != 0:
        step = 1 if missing > 0 else -1
        for place in order if missing > 0 else order[::-1]:
            if sum(given) != count and floor <= given[place] + step <= sizes[place]:
                given[place] += step
    return dict(zip(labels, given))


def induced(graph: Graph, nodes: Tensor) -> Graph:
    """The part of a graph that has only `nodes`, int64 [n] without repetition, in this order."""
    place = torch.full((len(graph["x"]),), -1, dtype=torch.long, device=nodes.device)
    place[nodes] = torch.arange(len(nodes), device=nodes.device)
    edges = place[graph["edges"]]
    inside = (edges >= 0).all(1)
    part = {"x": graph["x"][nodes], "edges": edges[inside], "label": graph["label"][nodes]}
    return part | ({"weight": graph["weight"][inside]} if "weight" in graph else {})
