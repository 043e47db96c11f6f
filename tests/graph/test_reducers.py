"""Reducers: what all of them keep, and the lookup."""

import pytest
import torch

from kdzoo import registry
from kdzoo.errors import UserError
from kdzoo.graph.reducers import budget, induced, make_reducer, shares


@pytest.fixture
def graph():
    """Two hundred nodes of four labels, the last one rare, the features of each around its own mean; no loops."""
    torch.manual_seed(0)
    label = torch.tensor([0] * 120 + [1] * 50 + [2] * 28 + [3] * 2)
    one = torch.randint(200, (600, 2))
    one = one[one[:, 0] != one[:, 1]].sort(1).values.unique(dim=0)
    return {"x": torch.randn(200, 6) + 3 * torch.eye(6)[label], "edges": torch.cat([one, one.flip(1)]), "label": label}


@pytest.mark.parametrize("name", registry.entries(registry.REDUCERS))
@pytest.mark.parametrize("weighted", [False, True])
def test_every_reducer_keeps_what_is_promised(name, weighted, graph):
    if weighted:
        graph["weight"] = torch.rand(len(graph["edges"]))
    before = {key: value.clone() for key, value in graph.items()}
    torch.manual_seed(1)
    small = make_reducer(name).reduce(graph, 0.1)
    assert small.keys() - {"weight"} == {"x", "edges", "label"}
    assert small["x"].shape == (20, 6)
    assert torch.isfinite(small["x"]).all()
    assert small["label"].bincount().tolist() == [12, 5, 2, 1]
    assert small["edges"].shape[1:] == (2,)
    assert small["edges"].numel() == 0 or (small["edges"].min() >= 0 and small["edges"].max() < 20)
    assert all(torch.equal(before[key], graph[key]) for key in before)
    torch.manual_seed(1)
    again = make_reducer(name).reduce(graph, 0.1)
    assert all(torch.equal(small[key], again[key]) for key in small)


def test_shares():
    label = torch.tensor([0] * 90 + [1] * 9 + [2])
    assert shares(label, 100) == {0: 90, 1: 9, 2: 1}
    assert shares(label, 10) == {0: 8, 1: 1, 2: 1}
    assert shares(label, 3) == {0: 1, 1: 1, 2: 1}
    assert shares(label, 2) == {0: 2, 1: 0, 2: 0}
    assert shares(torch.cat([label, torch.full((50,), -1)]), 10) == {0: 8, 1: 1, 2: 1}
    assert shares(torch.full((50,), -1), 10) == {-1: 10}


def test_induced_against_a_loop(graph):
    graph["weight"] = torch.rand(len(graph["edges"]))
    nodes = torch.tensor([7, 3, 150, 42, *range(60, 110)])
    part = induced(graph, nodes)
    place = {node: number for number, node in enumerate(nodes.tolist())}
    expected = [
        (place[a], place[b], weight)
        for (a, b), weight in zip(graph["edges"].tolist(), graph["weight"].tolist())
        if a in place and b in place
    ]
    assert [(*edge, weight) for edge, weight in zip(part["edges"].tolist(), part["weight"].tolist())] == expected
    assert torch.equal(part["x"], graph["x"][nodes])


def test_bad_input(graph):
    for make, message in (
        (lambda: make_reducer("randem"), "no reducer named 'randem'. Near: random"),
        (lambda: make_reducer("random", size=3), "'random' does not take these arguments: .*takes no arguments"),
        (lambda: budget(graph, 0.0), "rate=0.0 of its nodes"),
        (lambda: make_reducer("random").reduce(graph, 1.5), "rate=1.5 of its nodes"),
    ):
        with pytest.raises(UserError, match=message):
            make()
