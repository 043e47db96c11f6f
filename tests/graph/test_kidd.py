"""The kernel of KiDD against matrices over all pairs, what it learns, and the graphs that come out."""

import math

import pytest
import torch

from kdzoo.datamodules.graph_set_data import Graphs
from kdzoo.errors import UserError
from kdzoo.graph.kidd import KiDD, as_graphs, dense_side, kernel, padded, soft_edges, sparse_side, temperature


def some_graphs(count=12):
    """Paths of three to five nodes (class 0), and stars of as many (class 1); features tell even nodes."""
    parts = []
    for number in range(count):
        size = 3 + number % 3
        pairs = [(0 if number % 2 else node - 1, node) for node in range(1, size)]
        edges = torch.tensor(pairs + [(b, a) for a, b in pairs])
        x = torch.stack([torch.tensor([1.0, 0.0]) if node % 2 else torch.tensor([0.0, 1.0]) for node in range(size)])
        parts.append((x, edges, number % 2))
    return Graphs(
        images=torch.cat([x for x, _, _ in parts]),
        labels=torch.tensor([label for _, _, label in parts]),
        edges=torch.cat([edges for _, edges, _ in parts]),
        kind=torch.cat([torch.ones(len(edges), dtype=torch.int64) for _, edges, _ in parts]),
        nodes=torch.tensor([len(x) for x, _, _ in parts]),
        bonds=torch.tensor([len(edges) for _, edges, _ in parts]),
    )


def literal(one, other, depth):
    """The kernel of two graphs (x, adjacency), by its definition over all pairs of nodes."""
    (x, a), (y, b) = [(x, a + 1e-4 * torch.eye(len(a))) for x, a in (one, other)]

    def norms(x, a):
        return (a @ (x @ x.T + 1e-4) @ a.T).diagonal().sqrt()

    sigma = a @ (x @ y.T + 1e-4) @ b.T
    c = (sigma / (torch.outer(norms(x, a), norms(y, b)) + 1e-6)).clamp(-0.9999, 0.9999)
    ntk = sigma * (math.pi - c.acos()) / math.pi + (c * (math.pi - c.acos()) + (1 - c**2).sqrt()) / math.pi
    for _ in range(depth - 1):
        ntk = a @ ntk @ b.T
    return float(ntk.mean())


def dense(graphs, number):
    one = graphs.take([number])
    a = torch.zeros(len(one.x), len(one.x))
    a[one.edges[:, 0], one.edges[:, 1]] = 1
    return one.x, a


@pytest.mark.parametrize("depth", [1, 3])
def test_kernel_against_its_definition(depth):
    graphs = some_graphs(4)
    side = sparse_side(graphs, depth, torch.device("cpu"))
    found = kernel(side, side)
    torch.manual_seed(0)
    soft = torch.rand(2, 4, 4)
    soft = (soft + soft.mT).triu(1)
    soft = soft + soft.mT
    x = torch.rand(2, 4, 2)
    mixed = kernel(side, dense_side(x.double(), soft.double(), depth))
    for row in range(4):
        for column in range(4):
            expected = literal(dense(graphs, row), dense(graphs, column), depth)
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-4)
        for column in range(2):
            expected = literal(dense(graphs, row), (x[column], soft[column]), depth)
            assert float(mixed[row, column]) == pytest.approx(expected, rel=1e-4)


def test_edges_of_a_step():
    logits = torch.full((2, 5, 5), -5.0)
    logits[:, 0, 1] = 5.0
    torch.manual_seed(0)
    noise = torch.rand(2, 5, 5)
    edges = soft_edges(logits, noise, 1.0)
    torch.testing.assert_close(edges, edges.mT)
    assert not edges.diagonal(dim1=1, dim2=2).any()
    u = float(noise[1, 0, 1])
    assert float(edges[1, 0, 1]) == pytest.approx(1 / (1 + math.exp(-(5 + math.log(u / (1 - u))))), rel=1e-4)
    hard = soft_edges(logits, noise, 0.01)
    assert ((hard < 0.01) | (hard > 0.99)).float().mean() > 0.95
    assert [temperature(progress) for progress in (0, 0.5, 1, 2)] == pytest.approx([1, 0.1, 0.01, 0.01])


def test_there_and_back():
    """Without a step the small graphs are the real ones, but for nodes beyond the size."""
    graphs = some_graphs(6)
    x, logits, kind = padded(graphs, 5)
    same = as_graphs(x, logits, kind, graphs.labels)
    assert same.nodes.tolist() == graphs.nodes.tolist()
    for number in range(6):
        torch.testing.assert_close(dense(same, number), dense(graphs, number))
    assert (same.kind == 1).all()
    assert as_graphs(*padded(graphs, 3), graphs.labels).nodes.tolist() == [3] * 6


@pytest.mark.parametrize("init", ["random", "herding", "k_center"])
def test_it_learns_what_the_kernel_sees(init):
    """After some steps the small graphs tell paths from stars better than they did."""
    graphs, losses = some_graphs(), []
    for iterations in (0, 60):
        method = KiDD(
            per_class=1, init=init, iterations=iterations, lr_feat=0.02, lr_edges=0.05, batch_real=12, depth=2
        )
        method.seed, method.spec = 0, {"classes": 2}
        small = method.distil(graphs)
        assert small.graphs.labels.tolist() == [0, 1]
        assert ((small.graphs.x >= 0) & (small.graphs.x <= 1)).all()
        assert torch.equal(small.graphs.x, method.distil(graphs).graphs.x)  # the seed decides
        x, logits, _ = padded(small.graphs, 8)
        losses.append(float(method.regression(x, (logits > 0).float(), small.graphs.labels, graphs)))
    assert losses[1] < losses[0]


def test_bad_input():
    for make, message in (
        (lambda: KiDD(per_class=0), "per_class=0"),
        (lambda: KiDD(ridge=0), "ridge=0"),
        (lambda: KiDD(iterations=-1), "iterations=-1"),
        (lambda: KiDD(per_class=9).choose(some_graphs(), torch.Generator()), "per_class=9, but class 0 has 6 graphs"),
    ):
        with pytest.raises(UserError, match=message):
            make()
