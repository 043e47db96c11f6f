"""Graphs in the layouts of Planetoid and of the Open Graph Benchmark: published parts, missing and hostile files."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from kdzoo.datamodules import planetoid
from kdzoo.datamodules.ogb_nodes import OGBNodes
from kdzoo.datamodules.planetoid import Planetoid, git_name
from kdzoo.errors import UserError

pytest.importorskip("torch_geometric")


# ---------------------------------------------------------------------------------------------------------- planetoid


@pytest.fixture
def cora(tmp_path, monkeypatch):
    """A tiny file set in Cora's layout: 530 nodes, 14 of them labelled for training, the last 10 the test."""
    random = np.random.default_rng(0)
    x = (random.random((530, 6)) < 0.5).astype(np.float32)
    x[:, 0] = 1
    label = np.arange(530) % 7
    hot = np.eye(7, dtype=np.int32)[label]
    graph = {node: [(node + 1) % 530, (node - 1) % 530, node] for node in range(530)}
    order = np.arange(520, 530)[::-1]
    arrays = {"x": csr_matrix(x[:14]), "y": hot[:14], "allx": csr_matrix(x[:520]), "ally": hot[:520]}
    arrays |= {"tx": csr_matrix(x[order]), "ty": hot[order], "graph": graph}
    folder = tmp_path / "Cora" / "raw"
    folder.mkdir(parents=True)
    for part, array in arrays.items():
        (folder / f"ind.cora.{part}").write_bytes(pickle.dumps(array))
    (folder / "ind.cora.test.index").write_text("".join(f"{node}\n" for node in order))
    names = {part: git_name((folder / f"ind.cora.{part}").read_bytes()) for part in (*arrays, "test.index")}
    monkeypatch.setitem(planetoid.CONTENTS, "Cora", names)
    monkeypatch.setitem(planetoid.FEATURES, "Cora", 6)
    return tmp_path, x, label


def test_planetoid_has_its_published_parts(cora):
    root, x, label = cora
    data = Planetoid(str(root), "Cora", validation=400)
    data.setup()
    train, val, test = (data.parts[part]["label"] for part in ("train", "val", "test"))
    assert (train >= 0).nonzero()[:, 0].tolist() == list(range(14))
    assert (val >= 0).nonzero()[:, 0].tolist() == list(range(14, 414))
    assert (test >= 0).nonzero()[:, 0].tolist() == list(range(520, 530))
    assert test[520:].tolist() == label[520:].tolist()
    np.testing.assert_allclose(data.parts["train"]["x"], x / x.sum(1, keepdims=True), rtol=1e-6)
    edges = data.parts["train"]["edges"]
    assert len(edges) == 2 * 530  # the loops are gone
    assert data.spec["features"] == 6
    assert data.spec["class_names"][4] == "theory"
    other = Planetoid(str(root), "Cora", labels_per_class=5, validation=100)
    other.setup()
    assert [int((other.parts[part]["label"] >= 0).sum()) for part in ("train", "val", "test")] == [35, 100, 395]


def test_a_file_that_is_not_the_published_one_is_not_opened(cora):
    root, _, _ = cora

    class Evil:
        def __reduce__(self):
            return (open, (str(root / "owned"), "w"))

    (root / "Cora" / "raw" / "ind.cora.tx").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"ind.cora.tx' is not the published file"):
        Planetoid(str(root)).setup()
    assert not (root / "owned").exists()


def test_planetoid_says_what_is_missing(cora):
    root, _, _ = cora
    (root / "Cora" / "raw" / "ind.cora.test.index").write_text("some words")
    with pytest.raises(UserError, match=r"test.index' is not the published file"):
        Planetoid(str(root)).setup()
    with pytest.raises(UserError, match=r"There is no .*ind.pubmed.x': put the files ind.pubmed"):
        Planetoid(str(root), "PubMed").setup()
    with pytest.raises(UserError, match="there is no graph 'Citeseer'"):
        Planetoid(str(root), "Citeseer")
    assert Planetoid("nowhere", "CiteSeer").spec["features"] == 3703


# ---------------------------------------------------------------------------------------------------------------- ogb


@pytest.fixture
def arxiv(tmp_path):
    """Eight nodes in OGB's layout, the last without a label."""
    folder = tmp_path / "ogbn_arxiv"
    tables = {
        "raw/edge": "0,1\n1,2\n2,3\n3,3\n1,0\n",
        "raw/node-feat": "".join(f"{node}.5,{node % 3}\n" for node in range(8)),
        "raw/node-label": "0\n1\n2\n0\n1\n2\n0\nnan\n",
        "split/time/train": "0\n1\n2\n",
        "split/time/valid": "3\n4\n",
        "split/time/test": "5\n6\n",
    }
    for name, text in tables.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_ogb_has_its_published_parts(arxiv):
    data = OGBNodes(str(arxiv), "ogbn-arxiv")
    data.setup()
    found = [data.parts[part]["label"].tolist() for part in ("train", "val", "test")]
    none = [-1] * 8
    assert found == [[0, 1, 2, *none[3:]], [*none[:3], 0, 1, *none[5:]], [*none[:5], 2, 0, -1]]
    edges = {tuple(edge) for edge in data.parts["train"]["edges"].tolist()}
    assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}
    x = data.parts["train"]["x"]
    torch.testing.assert_close(x[:3].mean(0), torch.zeros(2))
    torch.testing.assert_close(x[:3].std(0, correction=0), torch.ones(2))
    assert data.spec["classes"] == 3
    few = OGBNodes(str(arxiv), "ogbn-arxiv", validation=1)
    few.setup()
    assert int((few.parts["val"]["label"] >= 0).sum()) == 1


def test_ogb_says_what_is_wrong(arxiv):
    raw, time = arxiv / "ogbn_arxiv" / "raw", arxiv / "ogbn_arxiv" / "split" / "time"
    with pytest.raises(UserError, match="has 2 features, and the arguments say 128"):
        OGBNodes(str(arxiv), features=128, classes=40).setup()
    assert OGBNodes("nowhere", features=128, classes=40).spec["classes"] == 40
    with pytest.raises(UserError, match=r"There is no .*edge.csv.gz': unpack ogbn-products of OGB there"):
        OGBNodes(str(arxiv), "ogbn-products").setup()
    (time / "test.csv.gz").write_bytes(gzip.compress(b"8\n"))
    with pytest.raises(UserError, match="names a node that is none of the 8"):
        OGBNodes(str(arxiv)).setup()
    (raw / "node-label.csv.gz").write_bytes(gzip.compress(b"0\nx\n"))
    with pytest.raises(UserError, match=r"node-label.csv.gz' holds no table of numbers"):
        OGBNodes(str(arxiv)).setup()
    (raw / "edge.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"edge.csv.gz' holds no table of numbers"):
        OGBNodes(str(arxiv)).setup()
