"""Classifiers of nodes and glnn against their equations; the export with torch_geometric alone."""

import json

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
from kdzoo.graph.networks import LAYERS, NodeNetwork
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
        (lambda: GLNN(teacher=Teacher(timm="resnet18", weights="pretrained")), "leave timm and store out"),
        (lambda: GLNN(teacher=Teacher(checkpoint=str(tmp_path))).build_for(data.spec), "holds no intact export"),
    ):
        with pytest.raises(UserError, match=message):
            make()
