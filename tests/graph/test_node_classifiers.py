"""Classifiers of nodes and glnn against their equations; the export with torch_geometric alone."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch_geometric.nn
from lightning import Trainer, seed_everything
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.graph_npz import GraphNpz
from kdzoo.errors import UserError
from kdzoo.graph.glnn import GLNN
from kdzoo.graph.networks import LAYERS, NodeNetwork, matrix_of_edges
from kdzoo.graph.nosmog import NOSMOG, similarity_loss
from kdzoo.graph.positions import DeepWalk, deepwalk, pairs_of, random_walks
from kdzoo.graph.supervised_node import SupervisedNode
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teacher, untrained_teachers

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
TEACHER = Teacher(checkpoint="none")


@pytest.fixture
def data(tmp_path):
    """Sixty nodes of three classes; edges are within the classes, and the features only name the node."""
    random = np.random.default_rng(0)
    label = np.arange(60) % 3
    edge = np.array([(a, b) for a in range(60) for b in range(a) if label[a] == label[b] and random.random() < 0.3]).T
    np.savez(tmp_path / "g.npz", edge=edge, y=label, x=np.eye(60))
    return GraphNpz(str(tmp_path / "g.npz"), labels_per_class=5, validation=6, inductive=0.3, repeat=5)


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))


def built(method, data):
    torch.manual_seed(0)
    with untrained_teachers():
        method.build_for(data.spec)
    return method.train()


@pytest.mark.parametrize("name", ["sage", "gin"])
def test_a_matrix_stands_for_the_edges(name):
    torch.manual_seed(0)
    x, edges = torch.randn(30, 5), torch.randint(29, (80, 2)).unique(dim=0)  # one way each, none at the last node
    network, found = NodeNetwork(name, 5, 3, hidden=4, dropout=0.0), []
    for each in (edges, matrix_of_edges(edges, 30)):
        network.zero_grad()
        logits = network(x, each)
        cross_entropy(logits, torch.arange(30) % 3).backward()
        found.append([logits, *(weight.grad for weight in network.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_supervised_is_cross_entropy_of_the_labelled_nodes(data, batch):
    method = built(SupervisedNode(student="gcn", dropout=0.0), data)
    logits = method.student(batch["x"], batch["edges"])
    known = batch["label"] >= 0
    assert int(known.sum()) == 15
    torch.testing.assert_close(method.losses(batch)["ce"], cross_entropy(logits[known], batch["label"][known]))


def test_glnn_against_a_loop(data, batch):
    method = built(GLNN(teacher=TEACHER, label_weight=0.25), data)
    student = method.student(batch["x"], batch["edges"]).log_softmax(1)
    teacher = method.teacher.networks[0](batch["x"], batch["edges"]).log_softmax(1)
    kl = sum(float((t.exp() * (t - s)).sum().detach()) for s, t in zip(student, teacher)) / len(student)
    terms = {name: term.detach() for name, term in method.losses(batch).items()}
    assert float(terms["kl"]) == pytest.approx(0.75 * kl, rel=1e-5)
    known = batch["label"] >= 0
    assert float(terms["ce"]) == pytest.approx(
        0.25 * float(cross_entropy(student[known], batch["label"][known]).detach())
    )
    assert built(GLNN(teacher=TEACHER), data).losses(batch)["ce"] == 0


def test_the_mlp_needs_no_edges_and_the_teacher_does(data, batch):
    method = built(GLNN(teacher=TEACHER), data)
    other = {**batch, "edges": batch["edges"][:4]}
    assert torch.equal(method.logits(batch), method.logits(other))
    assert not torch.equal(method.teacher(batch), method.teacher(other))


def test_the_teacher_is_a_run_and_its_structure_reaches_the_student(data, tmp_path):
    seed_everything(0, verbose=False)
    trainer = Trainer(max_steps=60, enable_checkpointing=False, **OPTIONS)
    method = SupervisedNode(student="gcn", hidden=16)
    trainer.fit(method, datamodule=data)
    (scores,) = trainer.test(method, datamodule=data, verbose=False)
    assert scores["test/accuracy"] > 60  # a third by chance
    assert scores.keys() == {"test/accuracy", "test/macro_f1", "test/accuracy_unseen"}
    method.export(tmp_path / "export", scores)
    teacher = Teacher(checkpoint=str(tmp_path / "export"))
    student = GLNN(teacher=teacher, optim=Optim(name="adam", lr=0.02, weight_decay=0.0, schedule="constant"))
    seed_everything(0, verbose=False)
    trainer = Trainer(max_steps=150, enable_checkpointing=False, **OPTIONS)
    trainer.fit(student, datamodule=data)
    agree = student.eval().logits(data.parts["train"]).argmax(1) == student.teacher(data.parts["train"]).argmax(1)
    assert agree.float().mean() > 0.9
    assert student.teacher_summary()["scores"] == scores
    assert student.figures().keys() == set()
    trainer.test(student, datamodule=data, verbose=False)
    assert student.figures().keys() == {"Confusion"}
    (prediction,) = trainer.predict(student, datamodule=data)
    lines = student.write_predictions([prediction], tmp_path).read_text().splitlines()
    assert lines[0] == "index,predicted,confidence"
    assert len(lines) == 61


# ------------------------------------------------------------------------------------------------------------- nosmog

QUICK = DeepWalk(size=4, walks=2, length=6, window=2)


def test_walks_go_along_edges():
    edges = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 1]])
    edges = torch.cat([edges, edges.flip(1)])
    random = torch.Generator().manual_seed(0)
    walks = random_walks(edges, torch.tensor([0, 3, 3]), 5, 20, random)
    there = {tuple(edge) for edge in edges.tolist()}
    assert all(step in there for walk in walks.tolist() for step in pairwise(walk))
    assert walks[:, 0].tolist() == [0, 3, 3]
    assert set(walks[:, 1:].flatten().tolist()) == {0, 1, 2, 3}


def test_pairs_are_within_the_window():
    walks = torch.arange(40).view(2, 20)
    pairs = pairs_of(walks, 3, torch.Generator().manual_seed(0))
    apart = (pairs[:, 0] - pairs[:, 1]).abs()
    assert (pairs[:, 0] // 20 == pairs[:, 1] // 20).all()
    assert apart.min() == 1
    assert apart.max() == 3
    # Every node has its nearest, two thirds the next, a third the farthest.
    assert int((apart == 1).sum()) == 2 * 38
    assert int((apart == 3).sum()) < int((apart == 2).sum()) < 2 * 36
    assert len(pairs.unique(dim=0)) == len(pairs)


def test_positions_are_alike_where_walks_meet():
    """Two cliques of ten nodes and a bridge; the last node is alone."""
    edges = torch.tensor([(a + k, b + k) for k in (0, 10) for a in range(10) for b in range(10) if a != b])
    edges = torch.cat([edges, torch.tensor([[0, 10], [10, 0]])])
    how = DeepWalk(size=8, walks=20, length=10, window=2, lr=0.05, batch=256)
    found = deepwalk(edges, 21, how, seed=0)
    assert torch.equal(found, deepwalk(edges, 21, how, seed=0))
    assert not found[20].any()
    near = torch.nn.functional.normalize(found[:20], dim=1)
    near = near @ near.T
    assert near[:10, :10].mean() > near[:10, 10:].mean() + 0.3
    assert not deepwalk(edges[:0], 3, how, seed=0).any()


def test_nosmog_against_its_equations(data, batch):
    """With a step of no width the adversary is the plain student."""
    options = {"dropout": 0.0, "eps": 0.0, "batch": 1000, "positions": None, "label_weight": 0.25}
    method = built(NOSMOG(teacher=TEACHER, similarity_weight=0.5, adversarial_weight=2.0, **options), data)
    glnn = built(GLNN(teacher=TEACHER, label_weight=0.25), data)
    glnn.student.load_state_dict(method.student.state_dict())
    terms = {name: float(term.detach()) for name, term in method.losses(batch).items()}
    plain = {name: float(term.detach()) for name, term in glnn.losses(batch).items()}
    assert terms["ce"] == pytest.approx(plain["ce"])
    assert terms["kl"] == pytest.approx(plain["kl"], rel=1e-5)
    assert terms["adversarial"] == pytest.approx(2 * (plain["ce"] + plain["kl"]), rel=1e-5)
    first = method.student.network.lins[0]
    student = method.encoder(first(batch["x"])).relu().detach()
    teacher = method.teacher.networks[0].network.convs[0](batch["x"], batch["edges"].T)
    total = 0.0
    for a, b in zip(student, teacher):
        for c, d in zip(student, teacher):
            total += float(a @ c - b @ d) ** 2
    assert terms["similarity"] == pytest.approx(0.5 * total / len(student) ** 2, rel=1e-4)
    assert similarity_loss(torch.eye(2), torch.eye(2)[:, [1, 0]]) == 0  # a rotation changes no similarity


def test_the_adversary_makes_it_worse_within_its_box(data, batch):
    method = built(NOSMOG(teacher=TEACHER, dropout=0.0, eps=0.1, positions=None), data)
    wanted = method.teacher(batch)
    delta = method.adversary(batch["x"], batch["label"], wanted)
    assert delta.abs().max() <= 0.1
    random = (2 * torch.rand_like(delta) - 1) * 0.1
    worse, other = (float(method.said(batch["x"] + each, batch["label"], wanted).detach()) for each in (delta, random))
    assert worse > other
    assert all(parameter.grad is None for parameter in method.parameters())


def test_unseen_nodes_lie_among_their_neighbours(data, batch, tmp_path):
    seed_everything(0, verbose=False)
    trainer = Trainer(max_steps=2, enable_checkpointing=False, **OPTIONS)
    method = NOSMOG(teacher=TEACHER, positions=QUICK, hidden=8)
    with untrained_teachers():
        trainer.fit(method, datamodule=data)
    assert torch.equal(method.known, batch["index"])
    assert torch.equal(method.located(batch)[:, 60:], method.position)
    whole = data.parts["test"]
    found = method.located(whole)[:, 60:]
    unseen = whole["unseen"].nonzero()[:, 0].tolist()
    assert unseen
    for node in unseen:
        others = [int(a) for a, b in whole["edges"].tolist() if b == node and a not in unseen]
        rows = [method.position[int((method.known == other).nonzero())] for other in others]
        expected = torch.stack(rows).mean(0) if rows else torch.zeros(4)
        torch.testing.assert_close(found[node], expected)
    # A checkpoint brings its positions along, and so does the export.
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with untrained_teachers():
        again = NOSMOG.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(again.eval().logits(whole), method.eval().logits(whole))
    files = method.export(tmp_path / "export")
    assert files == ["README.md", "config.json", "model.safetensors", "positions.safetensors"]
    kept = load_file(tmp_path / "export" / "positions.safetensors")
    assert torch.equal(kept["position"], method.position)
    assert "last 4 columns" in (tmp_path / "export" / "README.md").read_text()
    pupil = GLNN(teacher=Teacher(checkpoint=str(tmp_path / "export")))
    with pytest.raises(UserError, match="takes positions of the nodes too"):
        pupil.build_for(data.spec)


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_export_loads_with_torch_geometric_alone(name, data, batch, tmp_path):
    method = built(SupervisedNode(student=name, hidden=8, norm=None if name == "sgc" else "batch_norm"), data).eval()
    method.export(tmp_path / "export", {"test/accuracy": 50.0})
    constructor = next(
        line.strip().removeprefix("network = ")
        for line in (tmp_path / "export" / "README.md").read_text().splitlines()
        if line.strip().startswith("network = ")
    )
    network = eval(constructor, vars(torch_geometric.nn))
    network.load_state_dict(load_file(tmp_path / "export" / "model.safetensors"))
    inputs = (batch["x"],) if name == "mlp" else (batch["x"], batch["edges"].T)
    torch.testing.assert_close(network.eval()(*inputs), method.logits(batch))
    assert json.loads((tmp_path / "export" / "config.json").read_text())["scores"] == {"test/accuracy": 50.0}


def test_bad_input(data, tmp_path):
    for make, message in (
        (lambda: NodeNetwork("gnc", 3, 2), "no graph network 'gnc'. Near: sgc, gin, gcn"),
        (lambda: NodeNetwork("gcn", 3, 2, layers=0), "layers=0"),
        (lambda: GLNN(teacher=TEACHER, label_weight=2), "label_weight=2 is a share"),
        (lambda: NOSMOG(teacher=TEACHER, label_weight=2), "label_weight=2 is a share"),
        (lambda: NOSMOG(teacher=TEACHER, layers=1), "layers=1"),
        (
            lambda: NodeNetwork("sgc", 3, 2).forward_with(torch.ones(1, 3), torch.zeros(0, 2).long(), ["hidden"]),
            "nothing at",
        ),
        (lambda: DeepWalk(length=1), "length=1 has no pairs"),
        (lambda: DeepWalk(lr=0), "positive lr"),
        (lambda: GLNN(teacher=Teacher(timm="resnet18", weights="pretrained")), "leave timm and store out"),
        (lambda: GLNN(teacher=Teacher(checkpoint=str(tmp_path))).build_for(data.spec), "holds no intact export"),
    ):
        with pytest.raises(UserError, match=message):
            make()
