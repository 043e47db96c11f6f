"""GraphDART: rounds, scores, reducers, what is written."""

import csv
import math
import re

import pytest
import torch
from lightning import LightningDataModule, Trainer, seed_everything
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.debian_dependencies import DebianDependencies
from kdzoo.datamodules.provenance import Provenance
from kdzoo.errors import UserError
from kdzoo.export.detectors import read_detectors
from kdzoo.graph.graphdart import GraphDART, cascade, gaps, graph_scores, with_loops
from kdzoo.graph.networks import NodeNetwork
from kdzoo.graph.reducers import make_reducer


class Few(LightningDataModule):
    """Some graphs of nodes whose type shows in the features, more or less; the test has an attack."""

    def __init__(self, noise=0.3, classes=3, features=6, graphs=4, nodes=30):
        super().__init__()
        self.sizes = noise, classes, features, graphs, nodes
        random = torch.Generator().manual_seed(0)
        self.parts = {part: self.part(random, part == "test") for part in ("train", "val", "test")}
        self.names = [f"node {number}" for number in range(graphs * nodes)]
        self.titles = [f"graph {number}" for number in range(graphs)]
        spec = Provenance().spec
        self.spec = {**spec, "classes": classes, "class_names": list("abc")[:classes], "features": features}

    def part(self, random, attacked):
        noise, classes, features, graphs, nodes = self.sizes
        total = graphs * nodes
        label = torch.randint(classes, (total,), generator=random)
        pairs = torch.randint(nodes, (3 * total, 2), generator=random)
        pairs += nodes * torch.randint(graphs, (3 * total, 1), generator=random)
        x = noise * torch.randn(total, features, generator=random)
        x[torch.arange(total), label] += 1
        attack = torch.zeros(total, dtype=torch.long)
        if attacked:
            attack[:5] = 1
            x[:5] = -x[:5]
        edges = torch.cat([pairs, pairs.flip(1)])
        graph = torch.arange(graphs).repeat_interleave(nodes)
        return {"x": x, "edges": edges, "label": label, "index": torch.arange(total), "graph": graph, "attack": attack}

    def train_dataloader(self):
        return torch.utils.data.DataLoader([self.parts["train"]] * 20, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader([self.parts["val"]], batch_size=None)

    def test_dataloader(self):
        return torch.utils.data.DataLoader([self.parts["test"]], batch_size=None)

    predict_dataloader = test_dataloader


def trainer(folder, steps=20, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"enable_checkpointing": False, **options}
    return Trainer(max_steps=steps, default_root_dir=folder, **quiet, **options)


def fitted(folder, data=None, steps=20, **arguments):
    seed_everything(0, verbose=False)
    method, data = GraphDART(**{"reducer": "none", "rate": 1.0, "rounds": 4, **arguments}), data or Few()
    runs = trainer(folder, steps)
    runs.fit(method, datamodule=data)
    return method, data, runs


# -------------------------------------------------------------------------------------------------------- formulas


def test_gaps_are_those_of_the_margins():
    random = torch.Generator().manual_seed(0)
    logits, label = torch.randn(50, 4, generator=random), torch.randint(4, (50,), generator=random)
    for row, (share, own) in enumerate(zip(logits.double().softmax(1).tolist(), label.tolist())):
        first, second = sorted(share, reverse=True)[:2]
        gap = float(gaps(logits, label)[row])
        assert (gap > 0) == (share[own] == first)
        if gap > 0:
            assert 1 - math.exp(-gap) == pytest.approx((first - second) / first)


@pytest.mark.parametrize("confidence", [0.0, 0.5, 0.9])
def test_the_cascade_against_a_loop(confidence):
    gap = 3 * torch.randn(4, 200, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    found = cascade(gap, confidence)
    bound = (1 - confidence) / (2 - confidence)
    for node, score in enumerate(found.tolist()):
        chances = [1 / (1 + math.exp(value)) for value in gap[:, node].tolist()]
        wanted = (4 + min(chances)) / 5
        for number, chance in enumerate(chances):
            if chance <= bound:
                wanted = (number + chance / bound) / 5
                break
        assert score == pytest.approx(wanted, abs=1e-12)
    alarms = (1 - (-gap).exp() < confidence).all(0)  # as FLASH raises them: no detector is sure
    assert torch.equal(found > 4 / 5, alarms)


def test_scores_of_graphs_against_a_loop():
    random = torch.Generator().manual_seed(2)
    seen = {
        "graph": torch.randint(3, 9, (100,), generator=random),
        "score": torch.rand(100, generator=random, dtype=torch.double),
        "attack": (torch.rand(100, generator=random) < 0.02).long() - (torch.rand(100, generator=random) < 0.02).long(),
    }
    for top in (0.05, 0.3, 1.0):
        for number, score, attacked in zip(*graph_scores(seen, top)):
            own = seen["graph"] == number
            best = sorted(seen["score"][own].tolist(), reverse=True)[: math.ceil(top * int(own.sum()))]
            assert float(score) == pytest.approx(sum(best) / len(best))
            assert bool(attacked) == bool((seen["attack"][own] != 0).any())


# ---------------------------------------------------------------------------------------------------------- rounds


def test_rounds_settle_what_the_network_is_sure_of(tmp_path):
    """The run again, step by step, without a Trainer."""
    method, data, _ = fitted(tmp_path, Few(noise=0.6), dropout=0.0, normalize=False, confidence=0.2)
    graph = data.parts["train"]
    seed_everything(0, verbose=False)
    again = GraphDART("none", 1.0, rounds=4, dropout=0.0, normalize=False)
    again.build_for(data.spec)
    network, edges = again.network, with_loops(graph["edges"], 120)
    sizes = graph["label"].bincount()
    adam = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=5e-4)
    left, counts = torch.ones(120, dtype=torch.bool), []
    for number in range(4):
        for _ in range(5):
            logits = network(graph["x"], edges)
            loss = cross_entropy(logits[left], graph["label"][left], weight=120 / (3 * sizes))
            adam.zero_grad()
            loss.backward()
            adam.step()
        share = network.eval()(graph["x"], edges).softmax(1)
        high = share.topk(2).values
        left &= ~((share.argmax(1) == graph["label"]) & ((high[:, 0] - high[:, 1]) / high[:, 0] >= 0.2))
        network.train()
        counts.append(int(left.sum()))
        for key, weight in network.state_dict().items():
            assert torch.allclose(method.detectors[number].state_dict()[key], weight, atol=1e-5), (number, key)
    assert 120 > counts[0] > counts[-1] > 0  # the case is one in which rounds matter
    assert torch.equal(method.open, left)
    assert int(method.done) == 4


def test_the_run_stops_when_nothing_is_left(tmp_path):
    method, _, runs = fitted(tmp_path, Few(noise=0.0), steps=4000, normalize=False, rounds=400)
    assert not method.open.any()
    assert int(method.done) < 400
    assert runs.global_step == 10 * int(method.done)
    with pytest.raises(AssertionError):  # those of later rounds are no detectors
        torch.testing.assert_close(method.detectors[-1].state_dict(), method.network.state_dict())


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_every_round_ends_whatever_the_steps(tmp_path, steps):
    method, _, _ = fitted(tmp_path, steps=steps, confidence=0.99)
    assert int(method.done) == 4
    torch.testing.assert_close(method.detectors[-1].state_dict(), method.network.state_dict())


def test_detectors_learn_from_no_attack_and_keep_their_weights(tmp_path):
    method, _, _ = fitted(tmp_path)
    assert not any(p.requires_grad for p in method.detectors.parameters())
    optimised = {id(p) for group in method.optimizers().param_groups for p in group["params"]}
    assert optimised == {id(p) for p in method.network.parameters()}


# -------------------------------------------------------------------------------------------------------- evaluation


def test_scores_of_a_run(tmp_path):
    method, data, runs = fitted(tmp_path, steps=200, confidence=0.9, normalize=False, false_alarms=0.05)
    (logged,) = runs.test(method, datamodule=data, verbose=False)
    val = method.score(data.parts["val"])
    assert int((val > method.threshold).sum()) == 0.05 * 120 - 1  # the threshold is a score itself
    wanted = {
        "auc",
        "ap",
        "mcc",
        "ap_tolerant",
        "auc_tolerant",
        "mcc_tolerant",
        "graph_auc",
        "graph_ap",
        "false_alarms",
    }
    wanted |= {"types", "bytes", "bytes_whole", "nodes", "distil_cpu", "detector_cpu", "fit_cpu"}
    assert {name.removeprefix("test/") for name in logged} == wanted
    assert logged["test/auc"] > 90
    assert logged["test/graph_ap"] == 100
    assert logged["test/fit_cpu"] == pytest.approx(logged["test/distil_cpu"] + logged["test/detector_cpu"], rel=1e-4)
    assert logged["test/bytes"] == logged["test/bytes_whole"]
    assert set(method.figures()) == {"Most anomalous nodes", "Most anomalous graphs", "Scores", "Small graph", "Types"}
    ranked = [label.get_text() for label in method.figures()["Most anomalous nodes"].axes[0].get_yticklabels()]
    assert re.fullmatch(r"graph 0: [abc] node [0-4]", ranked[0])


def test_an_attack_without_its_nodes_is_scored_as_a_graph(tmp_path):
    data = Few()
    data.parts["test"]["attack"][:30] = -1
    method, data, runs = fitted(tmp_path, data)
    (logged,) = runs.test(method, datamodule=data, verbose=False)
    assert "test/graph_ap" in logged
    assert not {"test/auc", "test/mcc", "test/ap_tolerant"} & logged.keys()


def test_recorded_attacks_rank_above_benign_sessions(tmp_path):
    method, data, runs = fitted(
        tmp_path, Provenance(), steps=150, reducer="k_center", rate=0.05, rounds=10, normalize=False
    )
    (logged,) = runs.test(method, datamodule=data, verbose=False)
    assert logged["test/graph_ap"] > 80
    assert logged["test/auc"] > 55
    assert logged["test/bytes"] < 0.1 * logged["test/bytes_whole"]


# ---------------------------------------------------------------------------------------------------------- reducers


@pytest.mark.parametrize(
    ("reducer", "options"),
    [
        ("random", {}),
        ("k_center", {"hops": 1}),
        ("partition", {}),
        ("heavy_edge", {}),
        ("condensed", {"method": "gcondx", "steps": 3}),
        ("condensed", {"method": "gcond", "steps": 3, "arguments": {"outer": 1, "inner": 1, "threshold": 0.5}}),
    ],
)
def test_any_reducer_will_do(reducer, options, tmp_path):
    method, _, _ = fitted(tmp_path, reducer=reducer, rate=0.2, options=options)
    assert len(method.small["x"]) == 24
    assert method.small["label"].unique().tolist() == [0, 1, 2]
    again, _, _ = fitted(tmp_path, reducer=reducer, rate=0.2, options=options)
    for key, value in method.small.items():
        assert torch.equal(value, again.small[key]), key


def test_a_run_goes_on_with_its_graph_and_rounds(tmp_path):
    whole, data, _ = fitted(tmp_path, reducer="random", rate=0.5, confidence=0.5)
    seed_everything(0, verbose=False)
    first = GraphDART("random", 0.5, rounds=4, confidence=0.5)
    keep = trainer(tmp_path, 20, limit_train_batches=7, max_epochs=1)
    keep.fit(first, datamodule=data)
    keep.save_checkpoint(tmp_path / "a.ckpt")
    seed_everything(5, verbose=False)
    second = GraphDART("random", 0.5, rounds=4, confidence=0.5)
    rest = trainer(tmp_path, 20, limit_train_batches=7)
    rest.fit(second, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(second.small["x"], whole.small["x"])
    assert int(second.done) == 4


# ----------------------------------------------------------------------------------------------------- what is written


def test_the_export_runs_by_its_readme(tmp_path, monkeypatch):
    method, data, runs = fitted(tmp_path, reducer="random", rate=0.5)
    runs.test(method, datamodule=data, verbose=False)
    files = method.export(tmp_path / "export", {"test/auc": 1.0})
    assert files == ["README.md", "config.json", "detectors.safetensors", "graph.safetensors"]
    detectors, config = read_detectors(tmp_path / "export", NodeNetwork)
    assert len(detectors) == 4
    assert config["threshold"] == pytest.approx(float(method.threshold))
    block = re.search(r"\n\n((?:    .*\n|\n)+)", (tmp_path / "export" / "README.md").read_text())[1]
    monkeypatch.chdir(tmp_path / "export")
    held = {}
    exec(re.sub(r"^    ", "", block, flags=re.M), held)
    graph = data.parts["test"]
    with torch.no_grad():
        found = held["anomaly"](graph["x"], graph["edges"].T, graph["label"])
        assert torch.allclose(found, method.score(graph), atol=1e-6)


def test_a_damaged_export_is_said(tmp_path):
    method, _, _ = fitted(tmp_path)
    method.export(tmp_path / "export")
    (tmp_path / "export" / "detectors.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="holds no intact export of detectors"):
        read_detectors(tmp_path / "export", NodeNetwork)


def test_predictions_name_nodes_and_graphs(tmp_path):
    method, data, runs = fitted(tmp_path, steps=100)
    path = method.write_predictions(runs.predict(method, datamodule=data), tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    for row in rows[::17]:
        assert row["name"] == f"node {row['index']}"
        assert row["graph"] == f"graph {int(row['index']) // 30}"
        assert (row["anomalous"] == "1") == (float(row["score"]) > float(method.threshold))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: GraphDART(rounds=0), "rounds=0 must be 1 or more"),
        (lambda: GraphDART(confidence=1.0), r"confidence=1.0 in \[0, 1\)"),
        (lambda: GraphDART(false_alarms=0.0), "false_alarms=0.0 in"),
        (lambda: GraphDART(rate=0.0), "rate=0.0 is a share of the nodes"),
        (lambda: GraphDART("none"), "rate=0.05 is a share of the nodes in .* and 1 for the reducer 'none'"),
        (lambda: GraphDART("k_centre"), "k_centre.*Near: k_center"),
        (lambda: GraphDART("condensed", options={"method": "glnn"}), "'glnn' must be a condensation of graphs"),
        (lambda: GraphDART("condensed", options={"steps": 0}), "steps=0 > 0"),
        (lambda: GraphDART("condensed", options={"arguments": {"rate": 1}}), "leave it out of the arguments"),
        (lambda: GraphDART().check_data(DebianDependencies().spec), "takes provenance graphs, whose test says"),
        (lambda: NodeNetwork("gcn", 2, 2, normalize=True), "'gcn' cannot normalize"),
        (
            lambda: make_reducer("condensed", arguments={"outest": 1}).reduce(Few().parts["train"], 0.1),
            "DosCond does not take these arguments",
        ),
    ],
)
def test_bad_input(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()
