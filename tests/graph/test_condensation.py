"""Condensation of graphs against its equations; the result as a file; what is learned when."""

import json

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, one_hot
from torch_geometric.nn import GCN

from kdzoo.datamodules.graph_npz import GraphNpz
from kdzoo.errors import UserError
from kdzoo.export.condensed_graph import export_condensed_graph, read_condensed_graph, size_in_bytes
from kdzoo.graph.doscond import DosCond
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.experts import Experts, difficulty, share_of_nodes
from kdzoo.graph.gcdm import GCDM, class_means
from kdzoo.graph.gcond import GCond
from kdzoo.graph.gcondx import GCondX
from kdzoo.graph.gdem import (
    GDEM,
    block_basis,
    class_directions,
    eigenbasis,
    features_by_mlp,
    largest_component,
    orthogonality,
    outer_distance,
    scipy_matrix,
)
from kdzoo.graph.geom import GEOM, corrected
from kdzoo.graph.graph_reduction import GraphReduction
from kdzoo.graph.matrix import MatrixNetwork, compact, matrix_of, normalise, propagate
from kdzoo.graph.pictures import largest_eigenvalues
from kdzoo.graph.sfgc import SFGC
from kdzoo.graph.structure import EdgeNetwork, learns_edges, without_weak
from kdzoo.graph.trajectory_matching import InnerLoop
from kdzoo.teachers.sources import untrained_teachers

QUICK = Evaluation(networks=2, hidden=8, epochs=60)
OPTIONS = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
OPTIONS |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}


@pytest.fixture
def data(tmp_path):
    """Ninety nodes of three classes; edges are within the classes, and the features only name the node."""
    random = np.random.default_rng(0)
    label = np.arange(90) % 3
    edge = np.array([(a, b) for a in range(90) for b in range(a) if label[a] == label[b] and random.random() < 0.2]).T
    np.savez(tmp_path / "g.npz", edge=edge, y=label, x=np.eye(90))
    return GraphNpz(str(tmp_path / "g.npz"), labels_per_class=8, validation=6, repeat=5)


def fitted(method, data, steps=1, **options):
    seed_everything(0, verbose=False)
    trainer = Trainer(max_steps=steps, **OPTIONS, **options)
    trainer.fit(method, datamodule=data)
    return method


# ------------------------------------------------------------------------------------------------- graphs in matrices


def test_matrix_against_the_formula(data):
    data.setup()
    graph = {key: data.parts["train"][key] for key in ("x", "edges", "label")}
    dense = torch.zeros(90, 90)
    for a, b in graph["edges"].tolist():
        dense[a, b] = 1
    whole = dense + torch.eye(90)
    scale = torch.diag(whole.sum(1) ** -0.5)
    expected = scale @ whole @ scale
    torch.testing.assert_close(matrix_of(graph).to_dense(), expected)
    torch.testing.assert_close(normalise(dense), expected)
    few = {**graph, "edges": graph["edges"][:4], "weight": torch.tensor([0.5, 2.0, 1.0, 3.0])}
    assert matrix_of(few).is_sparse
    plain = torch.zeros(90, 90)
    for (a, b), weight in zip(few["edges"].tolist(), few["weight"].tolist()):
        plain[b, a] += weight  # row b gathers what comes from a
    torch.testing.assert_close(matrix_of(few).to_dense(), normalise(plain))
    assert matrix_of({**graph, "edges": graph["edges"][:0]}) is None
    assert torch.equal(propagate(None, graph["x"], 3), graph["x"])
    eigenvalues = np.linalg.eigvalsh(expected.double().numpy())[::-1][:40]
    np.testing.assert_allclose(largest_eigenvalues(graph), eigenvalues, atol=1e-6)


def test_gcn_is_torch_geometrics(data):
    data.setup()
    graph = data.parts["train"]
    own, other = MatrixNetwork("gcn", 90, 3, 16, 2).eval(), GCN(90, 16, 2, 3).eval()
    with torch.no_grad():
        for number, conv in enumerate(other.convs):
            conv.lin.weight.copy_(own.weights[number].T)
            conv.bias.copy_(own.biases[number])
    expected = other(graph["x"], graph["edges"].T)
    matrix = matrix_of({key: graph[key] for key in ("x", "edges", "label")})
    torch.testing.assert_close(own(graph["x"], matrix), expected)
    assert compact(graph["x"]).is_sparse
    torch.testing.assert_close(own(compact(graph["x"]), matrix), expected)
    hidden = (matrix @ graph["x"] @ own.weights[0] + own.biases[0]).relu()
    torch.testing.assert_close(own.embeddings(graph["x"], matrix)[0], hidden)


def test_sgc_gathers_first_or_last(data):
    data.setup()
    graph = data.parts["train"]
    matrix = matrix_of({key: graph[key] for key in ("x", "edges", "label")})
    network = MatrixNetwork("sgc", 90, 3, 16, 2)
    gathered = propagate(matrix, graph["x"], 2)
    torch.testing.assert_close(network(graph["x"], matrix), network(gathered))
    torch.testing.assert_close(network.embeddings(graph["x"], matrix)[1], gathered)


# ------------------------------------------------------------------------------------------------------ learned edges


def test_edge_network_against_a_loop_over_pairs():
    torch.manual_seed(0)
    x, network = torch.randn(5, 3), EdgeNetwork(3, hidden=8)
    pairs = torch.stack([torch.cat([x[i], x[j]]) for i in range(5) for j in range(5)])  # [25, 6]
    h = pairs
    for layer, norm in zip(network.layers, network.norms):
        h = layer(h)
        h = ((h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt()).relu()
    score = network.last(h).view(5, 5)
    expected = ((score + score.T) / 2).sigmoid()
    expected.fill_diagonal_(0)
    found = network(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(network.eval()(x), expected)  # the statistics of the pairs, always
    edges, weight = without_weak(torch.tensor([[0.0, 0.04], [0.05, 0.0]]), 0.05)
    assert edges.tolist() == [[1, 0]]
    assert weight.tolist() == [pytest.approx(0.05)]


def test_edges_and_features_take_turns(data):
    assert [learns_edges(i, 2, 3) for i in range(7)] == [True, True, False, False, False, True, True]
    options = {"outer": 2, "inner": 1, "turns": (1, 1), "evaluation": QUICK, "hidden": 8}
    for method, steps, moves in ((GCond(**options), 1, False), (GCond(**options), 2, True)):
        before = fitted(GCond(**options), data, steps - 1) if steps > 1 else None
        fitted(method, data, steps)
        start = before or started(method, data)
        assert torch.equal(method.x, start.x) != moves
        assert torch.equal(method.structure.last.weight, start.structure.last.weight) == moves


def started(method, data):
    """A method of the same seed before its first step."""
    seed_everything(0, verbose=False)
    other = type(method)(**dict(method.hparams))
    trainer = Trainer(max_steps=1, limit_train_batches=0, **OPTIONS)
    trainer.fit(other, datamodule=data)
    other.real = {key: data.parts["train"][key] for key in ("x", "edges", "label")}
    with torch.no_grad():
        other.start()
    return other


# ------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("network", ["sgc", "gcn"])
def test_gradient_distance_class_by_class(network, data):
    method = fitted(GCondX(rate=0.5, network=network, hidden=8, outer=1, evaluation=QUICK), data)
    model = MatrixNetwork(network, 90, 3, 8, 2)
    graph, matrix, expected = method.real, method.matrix, 0.0
    for label in range(3):
        real = cross_entropy(model(graph["x"], matrix)[graph["label"] == label], torch.full((8,), label))
        made = cross_entropy(model(method.x)[method.labels == label], torch.full((4,), label))
        for wanted, found in zip(
            torch.autograd.grad(real, list(model.weights)), torch.autograd.grad(made, list(model.weights))
        ):
            for a, b in zip(wanted.T, found.T):  # output by output
                expected += float(1 - (a @ b) / (a.norm() * b.norm() + 1e-6))
    assert float(method.distance(model, None).detach()) == pytest.approx(expected, rel=1e-4)


def test_classes_weigh_by_their_nodes(data):
    """Matching a class of half as many nodes counts half."""
    method = fitted(GCondX(rate=0.5, outer=1, evaluation=QUICK), data)
    model = MatrixNetwork("sgc", 90, 3, 8, 2)
    equal = float(method.distance(model, None).detach())
    x, labels = method.x.detach(), method.labels
    method.x.data, method.labels = torch.cat([x, x]), torch.cat([labels, labels])  # the same gradients: means
    assert float(method.distance(model, None).detach()) == pytest.approx(equal, rel=1e-4)
    keep = torch.cat([torch.arange(12), 12 + (labels == 0).nonzero()[:, 0]])
    method.x.data, method.labels = method.x.data[keep], method.labels[keep]
    parts = []
    for label in range(3):
        only = method.labels == label
        kept = method.x.data, method.labels
        method.x.data, method.labels = method.x.data[only], method.labels[only]
        parts.append(float(method.distance(model, None).detach()))
        method.x.data, method.labels = kept
    assert float(method.distance(model, None).detach()) == pytest.approx(
        parts[0] + 0.5 * (parts[1] + parts[2]), rel=1e-4
    )


def test_gcdm_matches_means_by_layer(data):
    method = fitted(GCDM(rate=0.5, hidden=8, layers=3, outer=1, lr_adj=None, evaluation=QUICK), data)
    model = MatrixNetwork("gcn", 90, 3, 8, 3)
    graph, expected = method.real, 0.0
    for wanted, found in zip(model.embeddings(graph["x"], method.matrix), model.embeddings(method.x, None)):
        for label in range(3):
            difference = wanted[graph["label"] == label].mean(0) - found[method.labels == label].mean(0)
            expected += float((difference**2).sum().detach()) / 3
    assert float(method.distance(model, None).detach()) == pytest.approx(expected, rel=1e-4)
    means = class_means(torch.arange(6.0)[:, None], torch.tensor([0, 2, 2, 0, -1, 2]), torch.tensor([0, 2]))
    assert means.flatten().tolist() == [1.5, pytest.approx(8 / 3)]


def test_methods_learn(data):
    """A few iterations bring the distance down, for each at its own start."""
    for method in (
        GCondX(rate=0.25, outer=2, inner=2, lr_feat=0.05, evaluation=QUICK),
        DosCond(rate=0.25, lr_feat=0.05, lr_adj=None, evaluation=QUICK),
        GCDM(rate=0.25, outer=2, inner=0, lr_feat=0.005, lr_adj=None, hidden=16, evaluation=QUICK),
    ):
        fitted(method, data)
        torch.manual_seed(1)
        models = [method.fresh_network(*method.shape) for _ in range(5)]
        before = sum(float(method.distance(model, None).detach()) for model in models)
        fitted(method, data, 30)
        after = sum(float(method.distance(model, None).detach()) for model in models)
        assert after < 0.8 * before, type(method).__name__


# ------------------------------------------------------------------------------------------------------- trajectories


def test_inner_loop_is_gradient_descent(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path))
    experts = Experts(count=2, epochs=20, every=10, lr=0.5)
    options = {"expert_epochs": 10, "inner": InnerLoop(steps=3), "experts": experts, "hidden": 8, "evaluation": QUICK}
    method = fitted(SFGC(rate=0.5, max_start=11, lr_feat=0.01, **options), data, 2)
    start, target = method.trajectories.read(1, [0, 1])
    network = MatrixNetwork("gcn", 90, 3, 8, 2)
    rate = float(method.learned_lr.detach())
    torch.nn.utils.vector_to_parameters(start.clone(), network.parameters())
    sgd = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(3):
        sgd.zero_grad()
        cross_entropy(network(method.x.detach()), method.labels).backward()
        sgd.step()
    end = torch.nn.utils.parameters_to_vector(network.parameters())
    with torch.enable_grad():
        torch.testing.assert_close(method.inner_loop(start).detach(), end.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(start, target)
    # The expert itself: plain gradient descent on the labelled nodes of the whole graph.
    torch.nn.utils.vector_to_parameters(start.clone(), network.parameters())
    sgd, known = torch.optim.SGD(network.parameters(), lr=0.5), method.real["label"] >= 0
    for _ in range(10):
        sgd.zero_grad()
        cross_entropy(network(method.real["x"], method.matrix)[known], method.real["label"][known]).backward()
        sgd.step()
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(network.parameters()), target, rtol=1e-4, atol=1e-5)


def test_geom_labels_and_window(data):
    said = torch.tensor([[-0.1, -3.0, -4.0], [-2.0, -0.5, -1.5]])
    assert corrected(said, torch.tensor([0, 2])).tolist() == [
        pytest.approx([-0.1, -3.0, -4.0]),
        pytest.approx([-2.0, -0.5, -0.5]),
    ]
    options = {"expert_epochs": 10, "first_max_start": 10, "max_start": 30, "hidden": 8, "evaluation": QUICK}
    experts, inner = Experts(count=1, epochs=40, easy=0.5), InnerLoop(steps=2)
    with untrained_teachers():
        method = fitted(GEOM(growth=0.5, inner=inner, experts=experts, lr_label=0.1, **options), data, 2)
    assert method.final_labels().sum(1).tolist() == pytest.approx([1.0] * 12)
    method.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = 0
    assert method.last_start() == 10
    method.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = 1
    assert method.last_start() == 30  # half of the run is done


def test_curriculum():
    how = Experts(easy=0.25, grown=100)
    assert [share_of_nodes(how, epoch) for epoch in (0, 50, 100, 500)] == pytest.approx([0.25, 0.5, 1.0, 1.0])
    assert share_of_nodes(Experts(easy=0.6, grown=100, pacing="root"), 50) == pytest.approx(0.68**0.5)
    assert share_of_nodes(Experts(easy=0.6, grown=100, pacing="linear"), 50) == pytest.approx(0.8)
    edges = torch.tensor([[0, 1], [0, 2], [0, 3], [3, 2]])
    edges = torch.cat([edges, edges.flip(1)])
    graph = {"x": torch.zeros(4, 1), "edges": edges, "label": torch.tensor([0, 1, 0, -1])}
    two, third = np.log(2), -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert difficulty(graph).tolist() == pytest.approx([third, two, 0.0, 0.0], abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- spectrum


def test_eigenbasis_of_the_largest_component(data, monkeypatch):
    data.setup()
    graph = data.parts["train"]
    matrix = scipy_matrix({key: graph[key] for key in ("x", "edges", "label")})
    nodes = largest_component(matrix)
    assert len(nodes) == 30  # the classes are the components
    dense = np.eye(30) - matrix[nodes][:, nodes].toarray()
    values, vectors = eigenbasis(matrix[nodes][:, nodes], 10, 0.75)
    every = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose(values, [*every[:8], *every[-2:]], atol=1e-6)
    np.testing.assert_allclose(dense @ vectors, values * vectors, atol=1e-5)
    monkeypatch.setattr("kdzoo.graph.gdem.SMALL", 5)  # the solver for large graphs
    again, sparse = eigenbasis(matrix[nodes][:, nodes], 10, 0.75)
    np.testing.assert_allclose(again, values, atol=1e-5)
    np.testing.assert_allclose(dense @ sparse, again * sparse, atol=1e-4)


def test_gdem_against_its_equations():
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(3, 5), dim=1) for _ in range(2))
    literal = sum(float((torch.outer(p, p) - torch.outer(q, q)).square().mean()) for p, q in zip(a, b)) / 3
    assert float(outer_distance(a, b)) == pytest.approx(literal, rel=1e-5)
    basis, values, x = torch.randn(6, 2), torch.tensor([0.1, 0.7]), torch.randn(6, 5)
    label = torch.tensor([0, 2, 2, 0, -1, 2])
    gathered = basis @ torch.diag(1 - values) @ basis.T @ x
    expected = torch.stack([gathered[[0, 3]].mean(0), gathered[[1, 2, 5]].mean(0)])
    found = class_directions(basis, values, x, label, torch.tensor([0, 2]))
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    assert float(orthogonality(torch.eye(4)[:, :2])) == 0
    assert float(orthogonality(2 * torch.eye(4)[:, :2])) == pytest.approx(18 / 4)
    start = block_basis(torch.arange(12) % 3, 5)
    torch.testing.assert_close(start.T @ start, torch.eye(5))


def test_gdem_takes_turns_and_learns(data, tmp_path):
    options = {"rate": 0.5, "eigenvectors": 8, "turns": (1, 1), "lr_eigenvectors": 0.01, "evaluation": QUICK}
    first = fitted(GDEM(**options, init="random"), data)
    second = fitted(GDEM(**options, init="random"), data, 2)
    assert torch.equal(first.basis, second.basis)
    assert not torch.equal(first.x, second.x)
    longer = fitted(GDEM(**options, init="random", alpha=1.0), data, 40)
    assert float(longer.terms["train/orthogonal"]) < 1e-3
    matrix = longer.final_graph()["matrix"]
    torch.testing.assert_close(matrix, matrix.T)
    basis, values = longer.basis.detach(), longer.eigenvalues
    torch.testing.assert_close(matrix, torch.eye(12) - basis @ torch.diag(values) @ basis.T)
    facts = {"method": "GDEM", "spec": {"classes": 3, "features": 90, "class_names": ["0", "1", "2"]}}
    export_condensed_graph(longer.final_graph(), longer.labels, facts, tmp_path / "export")
    read, _ = read_condensed_graph(tmp_path / "export")
    torch.testing.assert_close(matrix_of(read), matrix)
    assert "normalize=False" in (tmp_path / "export" / "README.md").read_text()
    assert size_in_bytes(longer.final_graph(), longer.labels) == 12 * 90 * 4 + 12 * 12 * 4 + 12 * 8


def test_features_start_where_an_mlp_sees_the_classes():
    torch.manual_seed(0)
    x, label = torch.eye(12), torch.arange(12) % 3
    wanted = torch.tensor([0, 1, 2, 2])
    made = features_by_mlp(x, label, wanted)
    assert made.shape == (4, 12)
    for row, number in zip(made, wanted.tolist()):
        own = row[label == number].mean()
        assert own > max(row[label == other].mean() for other in range(3) if other != number)


# --------------------------------------------------------------------------------------------------------- the result


def test_judged_by_fresh_networks(data, tmp_path):
    method = GraphReduction("herding", rate=0.5, evaluation=Evaluation(networks=2, hidden=16, epochs=100, whole=True))
    fitted(method, data)
    assert method.labels.tolist() == sorted([0, 1, 2] * 4) or method.labels.bincount().tolist() == [4, 4, 4]
    state = torch.get_rng_state()
    (scores,) = method.trainer.test(method, datamodule=data, verbose=False)
    assert torch.equal(state, torch.get_rng_state())
    assert scores["test/accuracy_whole"] > 95  # the classes are the components
    assert scores["test/accuracy"] > 40
    assert scores["test/bytes"] == size_in_bytes(method.final_graph(), method.labels)
    assert scores["test/bytes"] == 12 * 90 * 4 + 12 * 8 + 16 * len(method.edges)
    figures = method.figures()
    assert list(figures) == ["Condensed graph", "Class balance", "Spectrum"]
    files = method.export(tmp_path / "export", {"test/accuracy": 1.0})
    assert set(files) == {"README.md", "graph.json", "graph.safetensors"}


def test_checkpoint_without_data(data, tmp_path):
    for method in (GraphReduction(rate=0.5, evaluation=QUICK), GCond(rate=0.5, outer=1, evaluation=QUICK)):
        fitted(method, data)
        method.trainer.save_checkpoint(tmp_path / "x.ckpt")
        loaded = type(method).load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
        found, expected = loaded.final_graph(), method.final_graph()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_file_keeps_the_graph(tmp_path):
    torch.manual_seed(0)
    dense = EdgeNetwork(3)(torch.randn(4, 3)).detach()
    edges, weight = without_weak(dense, 0.0)
    labels = torch.tensor([0, 1, 1, 0])
    facts = {"method": "X", "spec": {"classes": 2, "features": 3, "class_names": ["a", "b"]}}
    listed = {"x": torch.randn(4, 3), "edges": torch.tensor([[0, 1], [1, 0]]), "label": labels}
    for graph, key, size in (
        ({**listed, "edges": edges, "weight": weight}, "adjacency", 4 * 16),
        (listed, "edges", 32),
        ({**listed, "edges": listed["edges"][:0]}, "edges", 0),
    ):
        for label in (labels, one_hot(labels).float()):
            export_condensed_graph(graph, label, facts, tmp_path / "g")
            assert key in load_file(tmp_path / "g" / "graph.safetensors")
            found, read = read_condensed_graph(tmp_path / "g")
            assert read["method"] == "X"
            assert torch.equal(found["label"], label)
            for name in ("x", "edges", "weight"):
                assert name not in graph or torch.equal(found[name], graph[name])
            assert size_in_bytes(graph, label) == 48 + label.numel() * label.element_size() + size
    path = tmp_path / "g" / "graph.safetensors"
    tensors = load_file(path)
    for change, message in (
        ({"edges": torch.tensor([[0, 9]])}, "an edge names a node"),
        ({"x": torch.full((4, 3), torch.nan)}, "features are not finite"),
        ({"label": torch.tensor([0, 1, 2, 0])}, "labels are not classes 0 ... 1"),
    ):
        save_file({**tensors, **change}, path)
        with pytest.raises(UserError, match=f"no intact condensed graph.*{message}"):
            read_condensed_graph(tmp_path / "g")
    (tmp_path / "g" / "graph.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(UserError, match="its format is 'x'"):
        read_condensed_graph(tmp_path / "g")


def test_bad_input(data):
    small = {"inner": InnerLoop(steps=1), "experts": Experts(epochs=20)}
    for make, message in (
        (lambda: GCond(rate=1.5), "rate=1.5 is a share of the labelled nodes"),
        (lambda: GCond(turns=(0, 0)), r"turns=\[0, 0\]"),
        (lambda: GCondX(network="gat").build_for(data.spec), "no network 'gat' for condensed graphs: give gcn or sgc"),
        (lambda: Evaluation(networks=0), "1 or more networks and epochs"),
        (lambda: GCond().build_for({"modality": "image"}), "GCond takes data .* a graph whose nodes have labels"),
        (lambda: SFGC(expert_epochs=15, **small), "must be a multiple of experts.every=10"),
        (lambda: SFGC(expert_epochs=20, max_start=30, **small), "reach epoch 40 of experts that have 20"),
        (lambda: GEOM(first_max_start=300), "cannot grow from 300 to 200"),
        (lambda: Experts(epochs=25), "25 epochs have no snapshot at the end"),
        (lambda: GraphReduction("herd"), "no reducer named 'herd'"),
        (lambda: GraphReduction(options={"size": 1}), "does not take these arguments"),
    ):
        with pytest.raises(UserError, match=message):
            make()
