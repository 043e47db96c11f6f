"""Sets of graphs: batches, parts, embedded files, hostile ones, the TU format."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import kdzoo
from kdzoo.datamodules.graph_set_data import Graphs, spans, tidy
from kdzoo.datamodules.molecules import Molecules, read_molecules
from kdzoo.datamodules.tu_dataset import TUDataset
from kdzoo.errors import UserError


def graphs(**changes):
    """A path of three nodes, and two nodes with a loop and a repeated edge."""
    edges = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1], [0, 1], [1, 0], [0, 1], [1, 1]])
    values = {
        "images": torch.arange(10.0).view(5, 2),
        "labels": torch.tensor([0, 1]),
        "edges": edges,
        "kind": torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]),
        "nodes": torch.tensor([3, 2]),
        "bonds": torch.tensor([4, 4]),
    }
    return Graphs(**(values | changes))


@pytest.mark.parametrize(
    ("name", "count", "atoms", "digest"), [("b3db", 7805, 209962, "759b33"), ("solubility", 1282, 16669, "0ddfdb")]
)
def test_the_embedded_files(name, count, atoms, digest):
    path = Path(kdzoo.__file__).parent / "assets" / f"molecules_{name}.npz"
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:6] == digest
    found = read_molecules(path)
    assert (len(found), len(found.x)) == (count, atoms)
    assert (found.x.sum(1) == 1).all()
    assert torch.equal(found.edges[::2], found.edges[1::2].flip(1))


def test_batches_against_a_loop():
    data = Molecules("solubility", batch_size=7, test=0.2, validation=100)
    data.setup()
    assert len(data.train_set) + len(data.validation_set) + len(data.test_set) == 1282
    batch = next(iter(data.train_dataloader()))
    start = 0
    for place, row in enumerate(batch["index"].tolist()):
        one = data.train_set.take([row])
        nodes = slice(start, start + int(one.nodes))
        assert torch.equal(batch["x"][nodes], one.x)
        assert (batch["graph"][nodes] == place).all()
        inside = (batch["edges"] >= start).all(1) & (batch["edges"] < nodes.stop).all(1)
        assert torch.equal(batch["edges"][inside] - start, one.edges)
        assert torch.equal(batch["kind"][inside], one.kind)
        assert batch["label"][place] == one.labels[0]
        start = nodes.stop
    assert start == len(batch["x"])
    assert spans(torch.tensor([2, 0, 3]), torch.tensor([2, 1, 0, 2])).tolist() == [2, 3, 4, 0, 1, 2, 3, 4]


def test_splits_follow_their_seed(monkeypatch):
    def test_part(seed):
        return Molecules("solubility", split_seed=seed).load()[1].labels, Molecules(
            "solubility", split_seed=seed
        ).load()[1].x

    assert torch.equal(test_part(0)[1], test_part(0)[1])
    assert not torch.equal(test_part(0)[1], test_part(1)[1])
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert torch.equal(test_part(None)[1], test_part(1)[1])
    shares = [labels.bincount().tolist() for labels in (test_part(0)[0], test_part(1)[0])]
    assert shares[0] == shares[1] == [104, 103, 49]


def test_loops_and_repetitions_are_left_out():
    found = tidy(graphs(), 2, "Data")
    assert found.bonds.tolist() == [4, 2]
    assert found.edges.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [0, 1], [1, 0]]
    assert found.kind.tolist() == [0, 0, 1, 1, 0, 0]  # of a repeated edge, the first kind
    assert found.bytes_each().tolist() == [3 * 8 + 2 * 9 + 1, 2 * 8 + 9 + 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.full((5, 2), torch.nan)}, "graph 0 has a feature that is not finite"),
        ({"edges": torch.full((8, 2), 2)}, "an edge of graph 1 names a node that is not there, its nodes are 0 to 1"),
        ({"labels": torch.tensor([0, 2])}, "label 2 is outside the 2 classes"),
        ({"labels": torch.tensor([0, 0])}, "no graph has the label 1"),
    ],
)
def test_what_is_wrong_with_graphs(changes, message):
    with pytest.raises(UserError, match=message):
        tidy(graphs(**changes), 2, "Data")


def test_what_is_wrong_with_files_and_arguments(tmp_path):
    np.savez(tmp_path / "odd.npz", a=np.array([6]), e=np.zeros((0, 2)), b=np.zeros(0), n=[2], m=[0], y=[0])
    np.savez(tmp_path / "strange.npz", a=np.array([92]), e=np.zeros((0, 2)), b=np.zeros(0), n=[1], m=[0], y=[0])
    for make, message in (
        (lambda: read_molecules(tmp_path / "odd.npz"), "holds no molecules .*sizes do not fit"),
        (lambda: read_molecules(tmp_path / "strange.npz"), "holds no molecules .KeyError: 92"),
        (lambda: Molecules("zinc"), "no set 'zinc'"),
        (lambda: Molecules(test=1.0), "test=1.0 must be in"),
        (lambda: Molecules(count=9999).setup(), "count=9999 is more than the 7805"),
        (lambda: TUDataset(str(tmp_path), "MUTAG").setup(), "MUTAG_A.txt'?: unpack MUTAG"),
    ):
        with pytest.raises(UserError, match=message):
            make()


def write_tu(folder, **changes):
    files = {
        "A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n",
        "graph_indicator": "1\n1\n1\n2\n2\n",
        "graph_labels": "-1\n1\n",
        "node_labels": "0\n1\n0\n2\n2\n",
        "edge_labels": "0\n0\n1\n1\n1\n1\n",
        **changes,
    }
    (folder / "TOY" / "raw").mkdir(parents=True)
    for name, text in files.items():
        if text:
            (folder / "TOY" / "raw" / f"TOY_{name}.txt").write_text(text)
    return TUDataset(str(folder), "TOY", test=0.5)


def test_a_set_of_the_tu_collection(tmp_path):
    found = write_tu(tmp_path / "full").read()
    assert found.x.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]
    assert found.nodes.tolist() == [3, 2]
    assert found.bonds.tolist() == [4, 2]
    assert found.kind.tolist() == [0, 0, 1, 1, 1, 1]
    assert found.labels.tolist() == [0, 1]
    bare = write_tu(tmp_path / "bare", node_labels="", edge_labels="")
    assert bare.read().x.tolist() == [[1.0]] * 5
    assert bare.kinds == 1
    with pytest.raises(UserError, match="holds no intact TU set"):
        write_tu(tmp_path / "broken", graph_indicator="1\n1\n").read()
    with pytest.raises(UserError, match="has 3 features, and the arguments say 7"):
        TUDataset(str(tmp_path / "full"), "TOY", features=7, classes=2).read()
