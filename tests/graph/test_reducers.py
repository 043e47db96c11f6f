"""Reducers: what all of them keep, and the lookup."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from kdzoo import registry
from kdzoo.errors import UserError
from kdzoo.graph.reducers import budget, coarsening, induced, make_reducer, shares
from kdzoo.graph.reducers.coarsening import VariationNeighbourhoods, variation
from kdzoo.graph.reducers.partition import smooth_features


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


def test_partition_is_the_minimum(graph):
    """No step away from the closed form makes the objective smaller."""
    torch.manual_seed(0)
    h = torch.randn(12, 4, dtype=torch.double)
    adjacency = (torch.rand(12, 12) > 0.7).double().triu(1)
    adjacency = adjacency + adjacency.T
    found = smooth_features(h, adjacency, 2, 3.0).requires_grad_()
    whole = adjacency + torch.eye(12)
    gather = torch.diag(whole.sum(1) ** -0.5) @ whole @ torch.diag(whole.sum(1) ** -0.5)
    energy = 0.0
    for i, j in adjacency.nonzero().tolist():
        difference = found[i] / adjacency[i].sum() ** 0.5 - found[j] / adjacency[j].sum() ** 0.5
        energy = energy + 0.5 * (difference**2).sum()
    objective = 3 * ((gather @ gather @ found - h) ** 2).sum() + energy
    (slope,) = torch.autograd.grad(objective, found)
    assert float(slope.abs().max()) < 1e-4
    torch.manual_seed(1)
    plain = make_reducer("partition", threshold=1.0, hops=0).reduce(graph, 0.1)
    assert len(plain["edges"]) == 0
    rare = graph["x"][graph["label"] == 3].mean(0)
    torch.testing.assert_close(plain["x"][plain["label"] == 3][0], rare, rtol=1e-4, atol=1e-4)


def test_variation_against_matrices(monkeypatch):
    random = np.random.default_rng(0)
    dense = np.triu(random.random((8, 8)) * (random.random((8, 8)) > 0.4), 1)
    dense = dense + dense.T
    signals, degree = random.standard_normal((8, 3)), dense.sum(1)

    def by_matrices(nodes):
        inside = dense[np.ix_(nodes, nodes)]
        laplacian = np.diag(2 * degree[nodes] - inside.sum(1)) - inside
        project = np.eye(len(nodes)) - np.full((len(nodes), len(nodes)), 1 / len(nodes))
        form = (project @ signals[nodes]).T @ laplacian @ project @ signals[nodes]
        return np.linalg.norm(form) / (len(nodes) - 1)

    sets = [[1, 4, 6], [0, 1], [2, 3, 4, 5, 7], [6, 7]]
    held = np.zeros((4, 8))
    for row, nodes in zip(held, sets):
        row[nodes] = 1
    found = variation(csr_matrix(dense), degree, signals, csr_matrix(held))
    assert found == pytest.approx([by_matrices(nodes) for nodes in sets])
    # Neighbourhoods come by what they cost, whether their nodes have a formula of their own or not, in pieces or not.
    dense[6, :] = dense[:, 6] = 0
    dense[6, 1] = dense[1, 6] = 0.5
    degree = dense.sum(1)
    monkeypatch.setattr(coarsening, "smooth_signals", lambda adjacency: signals)
    whole = [set(nodes.tolist()) for nodes in VariationNeighbourhoods().proposals(csr_matrix(dense))]
    expected = [[*np.flatnonzero(row).tolist(), node] for node, row in enumerate(dense)]
    assert whole == [set(nodes) for nodes in sorted(expected, key=lambda nodes: by_matrices(sorted(nodes)))]
    monkeypatch.setattr(coarsening, "AT_ONCE", 5)
    assert [set(nodes.tolist()) for nodes in VariationNeighbourhoods().proposals(csr_matrix(dense))] == whole


def test_coarsening_by_hand():
    """Two triangles with a bridge: each becomes a node, of mean features, and the bridge is the only edge."""
    one = torch.tensor([[0, 1], [1, 2], [0, 2], [3, 4], [4, 5], [3, 5], [2, 3]])
    graph = {"x": torch.arange(6.0)[:, None], "edges": torch.cat([one, one.flip(1)])}
    for name in ("heavy_edge", "variation_neighbourhoods"):
        for label in ([0, 0, 0, 1, 1, 1], [0, -1, 0, 1, 1, -1]):
            small = make_reducer(name).reduce({**graph, "label": torch.tensor(label)}, 2 / 6)
            assert small["label"].tolist() == [0, 1]
            assert small["edges"].tolist() == [[0, 1], [1, 0]]
            if -1 not in label:
                assert small["x"].flatten().tolist() == [1.0, 4.0]
                assert small["weight"].tolist() == [1.0, 1.0]
