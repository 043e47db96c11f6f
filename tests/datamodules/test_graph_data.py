"""Graphs of labelled nodes: parts, hostile files, what is left out."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import kdzoo
from kdzoo.datamodules.debian_dependencies import DebianDependencies
from kdzoo.datamodules.graph_data import subgraph
from kdzoo.datamodules.graph_npz import GraphNpz
from kdzoo.errors import UserError


def write(path, **changes):
    """A graph of 40 nodes in two classes, with a loop and a repeated edge."""
    random = np.random.default_rng(0)
    edge = random.integers(0, 40, (2, 90))
    edge[:, :4] = [[0, 1, 2, 3], [1, 0, 2, 4]]
    arrays = {"edge": edge, "y": np.arange(40) % 2, "x": random.random((40, 5))}
    np.savez(path, **{**arrays, **changes})
    return str(path)


def small(path, **options):
    return GraphNpz(path, **{"labels_per_class": 3, "validation": 6, **options})


@pytest.mark.parametrize(("size", "digest"), [("4k", "495d4e"), ("14k", "538f52")])
def test_the_embedded_files(size, digest):
    data = DebianDependencies(size=size)
    graph = next(iter(data.train_dataloader()))
    nodes, edges, classes = {"4k": (3994, 16954, 15), "14k": (14213, 44428, 16)}[size]
    assert graph["x"].shape == (nodes, 1000)
    assert graph["edges"].shape == (2 * edges, 2)
    assert data.spec["classes"] == classes
    assert (graph["label"] >= 0).sum() == 20 * classes
    content = (Path(kdzoo.__file__).parent / "assets" / f"debian_deps_{size}.npz").read_bytes()
    assert hashlib.sha256(content).hexdigest()[:6] == digest


def test_parts_are_disjoint_and_follow_the_split_seed(tmp_path):
    path = write(tmp_path / "g.npz")
    labels = {}
    for seed in (0, 0, 1):
        data = small(path, split_seed=seed)
        data.setup()
        labels.setdefault(seed, []).append([data.parts[part]["label"] for part in ("train", "val", "test")])
    first, again = labels[0]
    assert all(torch.equal(*pair) for pair in zip(first, again))
    assert not torch.equal(first[0], labels[1][0][0])
    known = torch.stack([label >= 0 for label in first])
    assert known.sum(0).max() == 1
    assert known.sum(1).tolist() == [6, 6, 28]
    assert torch.equal(torch.stack(first).max(0).values, torch.arange(40) % 2)


def test_edges_go_both_ways_without_loops_and_repetitions(tmp_path):
    data = small(write(tmp_path / "g.npz"))
    edges = {tuple(edge) for edge in next(iter(data.test_dataloader()))["edges"].tolist()}
    assert len(edges) == len(next(iter(data.test_dataloader()))["edges"])
    assert all((b, a) in edges and a != b for a, b in edges)
    assert {(0, 1), (3, 4)} <= edges


def test_an_inductive_training_does_not_see_a_share_of_the_test(tmp_path):
    data = small(write(tmp_path / "g.npz"), inductive=0.5)
    train, test = (next(iter(loader)) for loader in (data.train_dataloader(), data.test_dataloader()))
    assert int(test["unseen"].sum()) == 14
    assert len(train["x"]) == 26
    assert not set(train["index"].tolist()) & set(test["index"][test["unseen"]].tolist())
    assert (test["label"][test["unseen"]] >= 0).all()
    ends = {tuple(edge) for edge in train["index"][train["edges"]].tolist()}
    seen = ~test["unseen"]
    expected = {tuple(edge) for edge in test["index"][test["edges"]].tolist() if seen[list(edge)].all()}
    assert ends == expected
    assert torch.equal(train["x"], test["x"][seen])


def test_subgraph_against_a_loop():
    graph = {"x": torch.arange(5.0)[:, None], "edges": torch.tensor([[0, 1], [1, 3], [3, 4], [4, 0]])}
    found = subgraph(graph, torch.tensor([True, False, False, True, True]))
    assert found["x"].flatten().tolist() == [0, 3, 4]
    assert found["edges"].tolist() == [[1, 2], [2, 0]]


def test_small_classes_are_left_out_with_their_nodes(tmp_path):
    label = np.arange(40) % 2
    label[:3] = 2
    data = small(write(tmp_path / "g.npz", y=label), smallest_class=4)
    data.setup()
    assert data.class_names == ["0", "1"]
    assert data.parts["test"]["index"].tolist() == list(range(3, 40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge": np.array([[0], [40]])}, "an edge names node 40, but the nodes are 0 to 39"),
        ({"edge": np.array([[0], [-1]])}, "an edge names node -1"),
        ({"x": np.full((40, 2), np.nan)}, "node 0 has a feature that is not finite"),
        ({"y": np.full(40, -2)}, "label -2 is outside"),
        ({"y": np.append(np.arange(39) % 2, -5)}, "label -5 is outside the 2 classes"),
        ({"y": np.full(40, -1)}, "no class has smallest_class=1 nodes"),
        ({"edge": np.zeros((2, 0)), "y": np.zeros(0), "x": np.zeros((0, 5))}, "the graph has no node"),
        ({"y": np.zeros(39)}, "holds no graph"),
        ({"edge": np.zeros((3, 4))}, "holds no graph"),
        ({"y": np.zeros(40, dtype=object)}, "holds no graph"),
        ({"y": np.append(np.zeros(39), np.nan)}, "holds no graph .y has a number that is not whole"),
        ({"edge": np.array([[0.0], [1.5]])}, "holds no graph .edge has a number that is not whole"),
        ({"y": np.arange(40) // 38}, "class '1' has 2 nodes, too few for labels_per_class=3"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        small(write(tmp_path / "g.npz", **changes)).setup()


def test_what_is_wrong_with_the_arguments(tmp_path):
    path = write(tmp_path / "g.npz")
    for options, message in (
        ({"inductive": 1.0}, "inductive=1.0 in"),
        ({"labels_per_class": 0}, "labels_per_class=0"),
        ({"validation": 34}, "validation=34 leaves no test of 34 nodes"),
        ({"smallest_class": 21}, "no class has smallest_class=21 nodes, the largest has 20"),
    ):
        with pytest.raises(UserError, match=message):
            small(path, **options).setup()
    with pytest.raises(UserError, match="has 5 features and 2 classes, and the arguments say 5 and 3"):
        small(path, features=5, classes=3).setup()
    assert small("nowhere.npz", features=5, classes=2).spec["features"] == 5
    with pytest.raises(UserError, match="There is no graph at"):
        small(str(tmp_path / "other.npz")).setup()
    words = {"indptr": np.arange(41), "indices": np.append(np.arange(39), -1)}
    np.savez(tmp_path / "words.npz", edge=np.zeros((2, 0)), y=np.arange(40) % 2, **words)
    with pytest.raises(UserError, match=r"holds no graph .indices name word -1"):
        small(str(tmp_path / "words.npz")).setup()
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="holds no graph"):
        small(str(tmp_path / "damaged.npz")).setup()
