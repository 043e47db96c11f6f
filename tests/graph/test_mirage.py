"""Mirage against literal trees, a literal count of itemsets, and the claim that a root is embedded as its node was."""

import itertools
import json

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from safetensors.torch import load_file

from kdzoo.datamodules.graph_set_data import Graphs
from kdzoo.datamodules.molecules import Molecules
from kdzoo.errors import UserError
from kdzoo.graph import itemsets
from kdzoo.graph.graph_networks import GraphNetwork
from kdzoo.graph.itemsets import frequent_itemsets
from kdzoo.graph.mirage import Mirage, classes_of, mine, pattern_graphs
from kdzoo.graph.random_graphs import RandomGraphs
from kdzoo.graph.small_set import keep_in, training_graphs
from kdzoo.graph.trees import Adjacency, numbered, tree_classes, unroll

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def union_of(name: str, count: int):
    graphs = Molecules(name, count=count).load()[0]
    union = {key: value.numpy() for key, value in graphs.union().items()}
    return graphs, union, Adjacency.of(len(union["x"]), union["edges"], union["kind"])


def canonical(label: list[int], adjacency: Adjacency, hops: int) -> list[str]:
    """Every node's tree, built breadth by breadth and written with its children in order."""
    first, other, kind = (values.tolist() for values in (adjacency.first, adjacency.other, adjacency.kind))
    words = [str(one) for one in label]
    for _ in range(hops):
        words = [
            f"{label[v]}("
            + ",".join(sorted(f"{kind[e]}:{words[other[e]]}" for e in range(first[v], first[v + 1])))
            + ")"
            for v in range(len(label))
        ]
    return words


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["b3db", "solubility"])
def test_classes_are_the_canonical_trees(name, hops):
    _, union, adjacency = union_of(name, 400)
    label = numbered(union["x"])
    found = tree_classes(label, adjacency, hops)
    words = canonical(label.tolist(), adjacency, hops)
    assert found.max() + 1 == len(set(words)) == len(set(zip(found.tolist(), words)))
    assert set(found.tolist()) == set(range(found.max() + 1))


def test_unroll_against_a_recursion():
    _, union, adjacency = union_of("solubility", 20)
    label = numbered(union["x"])
    for node in range(0, len(label), 7):
        of, edges, kinds = unroll(node, adjacency, 3)
        assert of[0] == node
        assert (edges[:, 0] == np.arange(1, len(of))).all()  # every node but the root has one parent
        written = [str(one) for one in label[of]]
        below: list[list[str]] = [[] for _ in of]
        depth = np.zeros(len(of), dtype=int)
        for child, parent in edges:
            depth[child] = depth[parent] + 1
        for (child, parent), kind in reversed(list(zip(edges.tolist(), kinds.tolist()))):
            inner = f"{label[of[child]]}({','.join(sorted(below[child]))})" if depth[child] < 3 else written[child]
            below[parent].append(f"{kind}:{inner}")
        assert f"{label[node]}({','.join(sorted(below[0]))})" == canonical(label.tolist(), adjacency, 3)[node]


@pytest.mark.parametrize("name", ["gin", "gcn"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_root_is_embedded_as_its_node_was(name, layers):
    """The paper's claim. With `degrees`, all nodes of a class are embedded alike, by a GCN too."""
    graphs, union, adjacency = union_of("b3db", 60)
    torch.manual_seed(0)
    network = GraphNetwork(name, graphs.x.shape[1], 4, 2, hidden=16, layers=layers).double()
    tree = classes_of(union["x"], adjacency, layers, degrees=name == "gcn")
    x, edges, kind = (torch.from_numpy(union[key]) for key in ("x", "edges", "kind"))
    whole = network.embed(x.double(), edges, kind)
    patterns = [((one,), 1, 0) for one in range(tree.max() + 1)]
    found = pattern_graphs(patterns, tree, union["x"], adjacency, layers)
    batch = found.batch(torch.arange(len(found)))
    roots = network.embed(batch["x"].double(), batch["edges"], batch["kind"], batch["degree"])[batch["root"]]
    assert len(roots) == tree.max() + 1
    torch.testing.assert_close(whole, roots[torch.from_numpy(tree)], rtol=1e-6, atol=1e-6)
    if name == "gcn":  # without the degrees that the nodes had, it is another embedding
        wrong = network.embed(batch["x"].double(), batch["edges"], batch["kind"])[batch["root"]]
        assert (wrong - roots).abs().max() > 1e-3


def test_a_pattern_pools_its_roots_alone():
    graphs, union, adjacency = union_of("b3db", 60)
    network = GraphNetwork("gin", graphs.x.shape[1], 4, 2, hidden=16, layers=2)
    tree = classes_of(union["x"], adjacency, 2, degrees=False)
    batch = pattern_graphs([((0, 3, 5), 7, 1)], tree, union["x"], adjacency, 2).batch(torch.tensor([0]))
    inputs = {key: batch[key] for key in ("x", "edges", "kind", "graph", "index", "degree", "root")}
    first = [int((tree == one).argmax()) for one in (0, 3, 5)]
    nodes = network.embed(*(torch.from_numpy(union[key]) for key in ("x", "edges", "kind")))[first]
    torch.testing.assert_close(network(**inputs), network.head(nodes.sum(0, keepdim=True)), rtol=1e-5, atol=1e-5)
    network.pool = "mean"
    torch.testing.assert_close(network(**inputs), network.head(nodes.mean(0, keepdim=True)), rtol=1e-5, atol=1e-5)


def test_itemsets_against_a_count(monkeypatch):
    random = np.random.default_rng(0)
    transactions = [set(np.flatnonzero(random.random(8) < 0.6).tolist()) for _ in range(30)]
    for least in (1, 5, 12):
        expected = {
            items: count
            for size in range(1, 9)
            for items in itertools.combinations(range(8), size)
            if (count := sum(set(items) <= one for one in transactions)) >= least
        }
        found = frequent_itemsets(transactions, least)
        assert dict(found) == expected
        assert len(found) == len(expected)
        assert [count for _, count in found] == sorted(expected.values(), reverse=True)
    monkeypatch.setattr(itemsets, "MOST", 10)
    with pytest.raises(UserError, match="A support of 1 graphs leaves more than 10 patterns: raise it"):
        frequent_itemsets(transactions, 1)


def test_mining_counts_sets_and_leaves_single_nodes_out():
    # Three graphs of class 0: trees {1, 1, 2}, {1, 2, 3}, {1}; the nodes of tree 3 have no neighbour.
    tree, graph = np.array([1, 1, 2, 1, 2, 3, 1]), np.array([0, 0, 0, 1, 1, 1, 2])
    label, degree = np.zeros(3, dtype=int), np.array([1, 1, 1, 1, 1, 0, 1])
    assert mine(tree, graph, label, degree, [2, 1]) == [((1,), 3, 0), ((1, 2), 2, 0), ((2,), 2, 0)]
    assert [items for items, _, _ in mine(tree[5:6], np.array([0]), label[:1], degree[5:6], [1])] == [(3,)]
    with pytest.raises(UserError, match="no computation tree is in 4 of the 3 graphs of class 0: give 1 or less"):
        mine(tree, graph, label, degree, [4])


def test_budgets_keep_the_order_and_the_classes_apart():
    sizes, label = torch.tensor([5, 9, 2, 4, 1]), torch.tensor([0, 0, 0, 1, 1])
    assert keep_in(sizes, label, [8, 4]).tolist() == [0, 2, 3]


@pytest.fixture(scope="module")
def fitted():
    seed_everything(0, verbose=False)
    data = Molecules(count=400)
    method = Mirage(0.1, bytes=60_000, hidden=16, layers=2, dropout=0.0)
    trainer = Trainer(max_steps=3, enable_checkpointing=False, **OPTIONS)
    trainer.fit(method, datamodule=data)
    (scores,) = trainer.test(method, datamodule=data, verbose=False)
    return method, data, scores, trainer


def test_the_small_set(fitted):
    method, data, scores, _ = fitted
    small = method.small
    assert scores["test/bytes"] == int(small.bytes_each().sum()) <= 60_000
    assert scores["test/compression"] == pytest.approx(
        int(data.train_set.bytes_each().sum()) / scores["test/bytes"], rel=1e-6
    )
    assert set(small.graphs.labels.tolist()) == {0, 1}
    drawn, again, other = method.drawn(5), method.drawn(5), method.drawn(6)
    assert all(torch.equal(drawn[key], again[key]) for key in drawn)
    assert not torch.equal(drawn["index"], other["index"])
    assert set(drawn) == {"x", "edges", "kind", "graph", "label", "index", "degree", "root"}
    # Frequencies are weights of the draw, or they are not.
    assert len(small.weight.unique()) > 1
    even = Mirage(0.1, sampling="uniform", bytes=60_000, hidden=16, layers=2)
    even.spec = method.spec
    assert even.distil(data.train_set).weight.unique().tolist() == [1]


def test_the_export_runs_with_torch_alone(fitted, tmp_path):
    method, data, scores, trainer = fitted
    files = method.export(tmp_path / "export", scores)
    assert files == ["README.md", "config.json", "graphs.safetensors", "model.pt2"]
    batch = next(iter(data.test_dataloader()))
    inputs = [batch[key] for key in ("x", "edges", "kind", "graph", "index")]
    network = torch.export.load(tmp_path / "export" / "model.pt2").module()
    torch.testing.assert_close(network(*inputs), method.student.eval()(*inputs))
    tensors = load_file(tmp_path / "export" / "graphs.safetensors")
    assert sum(tensors["nodes"].tolist()) == len(tensors["x"]) == len(tensors["root"])
    assert json.loads((tmp_path / "export" / "config.json").read_text())["scores"] == scores
    predictions = trainer.predict(method, datamodule=data)
    assert len(method.write_predictions(predictions, tmp_path).read_text().splitlines()) == 81


def test_graphs_of_foreign_batches(fitted):
    """A loader that mixes the nodes of its graphs gives the same graphs."""
    _, data, _, _ = fitted
    union = data.train_set.take(torch.arange(8)).union()
    order = torch.randperm(len(union["x"]), generator=torch.Generator().manual_seed(0))
    mixed = {**union, "x": union["x"][order], "graph": union["graph"][order], "edges": order.argsort()[union["edges"]]}
    mixed["edges"] = torch.cat(
        [mixed["edges"], torch.tensor([[0, int((mixed["graph"] != mixed["graph"][0]).nonzero()[0])]])]
    )
    mixed["kind"] = torch.cat([mixed["kind"], torch.zeros(1, dtype=torch.int64)])

    class Foreign:
        def train_dataloader(self):
            return [mixed]

    found, expected = training_graphs(Foreign()), data.train_set.take(torch.arange(8))
    assert torch.equal(found.nodes, expected.nodes)
    assert torch.equal(found.bonds, expected.bonds)
    network = GraphNetwork("gin", found.x.shape[1], 4, 2, hidden=8, layers=2)
    one, other = ({**each.union(), "index": each.labels} for each in (found, expected))
    names = ("x", "edges", "kind", "graph", "index")
    torch.testing.assert_close(network(*(one[n] for n in names)), network(*(other[n] for n in names)))


def test_bad_input(fitted):
    method, data, _, _ = fitted
    for make, message in (
        (lambda: Mirage(support=0.0), "support=0.0 must be a share"),
        (lambda: Mirage(hops=0), "hops=0 must be 1 or more"),
        (lambda: Mirage(bytes=0), "bytes=0 must be 1 or more"),
        (lambda: GraphNetwork("gat", 3, 1, 2), "no network of graphs 'gat'"),
        (lambda: GraphNetwork("gin", 3, 1, 2, norm="group"), "no norm=group"),
        (lambda: distil(Mirage(0.9, layers=2), method, data), "no computation tree is in .* give 0.* or less"),
        (lambda: distil(Mirage([0.1, 0.1, 0.1]), method, data), "support has 3 shares, and the data 2 classes"),
        (lambda: distil(Mirage(0.1, bytes=700, layers=2), method, data), "bytes=700 hold no pattern of class"),
        (lambda: distil(RandomGraphs(bytes=50), method, data), "bytes=50 hold no graph: the smallest takes"),
    ):
        with pytest.raises(UserError, match=message):
            make()


def distil(method, fitted, data):
    method.spec, method.seed = fitted.spec, 0
    return method.distil(data.train_set)


def test_random_graphs_are_real_ones_that_fit(fitted):
    method, data, _, _ = fitted
    small = distil(RandomGraphs(bytes=50_000), method, data)
    assert isinstance(small.graphs, Graphs)
    assert 40_000 < int(small.bytes_each().sum()) <= 50_000
    shares = small.bytes_each()[small.graphs.labels == 1].sum() / small.bytes_each().sum()
    assert float(shares) == pytest.approx(float((data.train_set.labels == 1).float().mean()), abs=0.1)
