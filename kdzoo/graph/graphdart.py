"""GraphDART: a detector of attacks learns what benign provenance looks like from a small graph in place of a large one.

    small = reduce(provenance graph of benign activity, rate)
    loss  = class-weighted CE(z_v, type_v) over the nodes of `small` that no earlier round has settled
    m_v   = (p_1 - p_2) / p_1 where the right type has the highest p, settled: m_v >= confidence

Labels are the nodes' types (processes, sockets, kinds of files), never attacks: those are in no training. A round is a
part of the run; at its end the network is put aside as a detector, and the nodes whose type it predicts with a margin
m_v of `confidence` or more are settled; the network goes on with the others, until none is left. In a test, the
detectors are asked in the order of the rounds: the later one is sure of a node, and the less, the more anomalous it is,
and most of all if none is (`cascade`). Above the score that `false_alarms` of the benign validation nodes exceed, a
node is anomalous. A graph's score is the mean of its `top` highest. The graphs of a test are whole, so that detection
costs what it did.

Any reducer will do (`kdzoo.graph.reducers`); `condensed` makes the graph by gradient matching or any other condensation
of this family, and rate 1 with `none` trains on everything. Every node is among its own neighbours in training and
test alike, so that small graphs with few edges or none train all of the network.
Source: Rabooki et al., arXiv 2501.02796; the detector is that of FLASH (Rehman et al., IEEE S&P 2024), whose code has
the rounds, the width, the weights of the classes, and alarms where no detector is sure. There every layer's output has
length 1 (`normalize`), margins are of such logits, and thresholds were chosen by data set; here margins are of
probabilities. Its optional boosted trees are left out.
"""

import csv
import io
import math
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.card import Card
from kdzoo.console import count, say
from kdzoo.errors import UserError
from kdzoo.export.condensed_graph import size_in_bytes
from kdzoo.export.detectors import export_detectors
from kdzoo.files import write_text
from kdzoo.graph.networks import NodeNetwork, matrix_of_edges
from kdzoo.graph.pictures import balance_figure, graph_figure, ranking_figure, scores_figure
from kdzoo.graph.reducers import Graph, make_reducer
from kdzoo.method import Method, plain
from kdzoo.metrics.anomalies import matthews, ranking, tolerant, tolerant_matthews
from kdzoo.optim import Optim
from kdzoo.teachers import sources

CARD = Card(
    title="GraphDART: Graph Distillation for Efficient Advanced Persistent Threat Detection",
    arxiv="2501.02796",
    year=2025,
    family="graph",
    task="anomaly detection in provenance graphs",
    student="GraphSAGE in rounds",
    data="provenance graphs of benign activity",
    headline="detection on par with the whole graph's at 1 to 5 % of its nodes",
    tags=("graph condensation", "anomaly detection", "security"),
)

KEYS = ("x", "edges", "label", "weight")


class GraphDART(Method):
    """Detection of attacks by a network that has learned the types of benign nodes from a reduced graph.

    The test logs, in percent, `auc`, `ap` and `mcc` of the nodes, the latter two also with FLASH's tolerance
    (`kdzoo.metrics.anomalies`), `graph_auc` and `graph_ap` of attacked against benign graphs, the `types` predicted
    right, and the `false_alarms` among benign nodes; `bytes` of the graph that was trained on and `bytes_whole`; and
    CPU-seconds: `distil_cpu`, `detector_cpu`, and their sum `fit_cpu`.

    Args:
        reducer: The name of a reducer; `none` for the whole graph.
        rate: Nodes of the small graph as a share of all, in (0, 1].
        options: The reducer's own arguments.
        rounds: Detectors.
        confidence: The margin from which a node is settled, in [0, 1); lengths of 1 allow no more than 0.75.
        hidden: Width.
        layers: Layers, and so hops.
        dropout: Probability after every hidden layer.
        normalize: Let every layer's output have length 1.
        false_alarms: Share of the benign validation nodes that may be taken for anomalous, in (0, 1).
        hops: How near counts as the same place in tolerant scores.
        top: Share of a graph's nodes whose mean score is the graph's, in (0, 1].
        optim: The optimizer and its schedule.
    """

    modality = "node_graph"
    least_per_class = 2
    network: NodeNetwork
    done: Tensor
    threshold: Tensor

    def __init__(
        self,
        reducer: str = "variation_neighbourhoods",
        rate: float = 0.05,
        options: dict[str, Any] | None = None,
        rounds: int = 20,
        confidence: float = 0.6,
        hidden: int = 32,
        layers: int = 2,
        dropout: float = 0.5,
        normalize: bool = True,
        false_alarms: float = 0.01,
        hops: int = 2,
        top: float = 0.05,
        optim: Optim = Optim(name="adam", lr=0.01, weight_decay=5e-4, schedule="constant"),
    ) -> None:
        super().__init__()
        if rounds < 1 or hops < 0 or not 0 <= confidence < 1 or not 0 < false_alarms < 1 or not 0 < top <= 1:
            raise UserError(
                f"GraphDART: rounds={rounds} must be 1 or more, hops={hops} 0 or more, confidence={confidence} in "
                f"[0, 1), false_alarms={false_alarms} in (0, 1) and top={top} in (0, 1]."
            )
        if not 0 < rate <= 1 or (reducer == "none" and rate < 1):
            raise UserError(f"GraphDART: rate={rate} is a share of the nodes in (0, 1], and 1 for the reducer 'none'.")
        self.reducer = None if reducer == "none" else make_reducer(reducer, **(options or {}))
        self.rate, self.rounds, self.confidence = rate, rounds, confidence
        self.sizes: dict[str, Any] = {"hidden": hidden, "layers": layers, "dropout": dropout, "normalize": normalize}
        self.false_alarms, self.hops, self.top = false_alarms, hops, top
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim
        self.small: Graph | None = None
        self.open = torch.zeros(0, dtype=torch.bool)  # nodes of `small` that are not settled
        self.facts: dict[str, float] = {}

    def check_data(self, spec: dict[str, Any]) -> None:
        """Raise a `UserError` if the data do not say what is an attack."""
        super().check_data(spec)
        if "attack" not in spec["keys"]:
            raise UserError("GraphDART takes provenance graphs, whose test says what is an attack: give it provenance.")

    def build(self, spec: dict[str, Any]) -> None:
        """Make the network, and room for the detectors."""
        self.network = NodeNetwork("sage", spec["features"], spec["classes"], **self.sizes)
        self.detectors = nn.ModuleList(deepcopy(self.network) for _ in range(self.rounds)).requires_grad_(False)
        self.register_buffer("done", torch.tensor(0))  # rounds
        self.register_buffer("threshold", torch.tensor(torch.nan, dtype=torch.double))  # as the scores
        self.seen: list[dict[str, Tensor]] = []  # what the last test has scored

    def summary(self) -> str:
        """Say what is trained on how much."""
        nodes = f" on {len(self.small['x']):,} nodes" if self.small else ""
        size = count(sum(p.numel() for p in self.network.parameters()))
        return f"GraphSAGE ({size} parameters) in {self.rounds} rounds{nodes}"

    def configure_optimizers(self) -> Any:
        """Optimise the network; what is put aside stays as it is."""
        return self.optim.configure(self.network.parameters(), self.total_steps)

    # ----------------------------------------------------------------------------------------------- small graph

    def training_graph(self) -> Graph:
        """The graph that the data module gives for training."""
        batch = next(iter(self.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
        return {key: batch[key].to(self.device) for key in KEYS if key in batch}

    def on_fit_start(self) -> None:
        """Reduce the training graph, unless a checkpoint has the small one."""
        whole = self.training_graph()
        if self.small is None:
            began = time.process_time()
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(torch.initial_seed())
                self.small = whole if self.reducer is None else self.reducer.reduce(whole, self.rate)
            self.open = torch.ones(len(self.small["label"]), dtype=torch.bool)
            self.facts = {
                "distil_cpu": time.process_time() - began,
                "detector_cpu": 0.0,
                "nodes": float(len(self.small["x"])),
                "bytes": float(size_in_bytes(self.small, self.small["label"])),
                "bytes_whole": float(size_in_bytes(whole, whole["label"])),
            }
            if not sources.untrained():
                nodes, edges = ([f"{len(each[key]):,}" for each in (self.small, whole)] for key in ("x", "edges"))
                say("graph", f"{nodes[0]} nodes and {edges[0]} edges of {nodes[1]} and {edges[1]}")
        self.small = {key: value.to(self.device) for key, value in self.small.items()}
        self.open = self.open.to(self.device) & (self.small["label"] >= 0)
        size = len(self.small["x"])
        self.looped = matrix_of_edges(with_loops(self.small["edges"], size), size)
        sizes = self.small["label"][self.small["label"] >= 0].bincount(minlength=(self.spec or {})["classes"])
        self.weights = sizes.sum() / ((sizes > 0).sum() * sizes.clamp(min=1))  # [C]: as much of each type that is there

    # --------------------------------------------------------------------------------------------------- rounds

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` over the nodes that are not settled."""
        assert self.small is not None
        logits = self.network(self.small["x"], self.looped)  # [n, C]
        return {"ce": cross_entropy(logits[self.open], self.small["label"][self.open], weight=self.weights)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Take a step, and time it."""
        self.began = time.process_time()
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the round, if this was its last step."""
        self.end_rounds()
        self.facts["detector_cpu"] += time.process_time() - self.began

    def end_rounds(self) -> None:
        """Put the network aside for every round that the steps so far have ended, and settle what it is sure of.

        The run stops when no node is left.
        """
        over = self.trainer.global_step * self.rounds // max(1, int(self.total_steps))
        for number in range(int(self.done), over):
            assert self.small is not None
            detector: Any = self.detectors[number]
            detector.load_state_dict(self.network.state_dict())
            with torch.no_grad():
                gap = gaps(detector.eval()(self.small["x"], self.looped), self.small["label"])
            self.open &= gap < gap_of(self.confidence)
            self.done += 1
            if not self.open.any():
                break
        if not self.open.any():
            self.trainer.should_stop = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """End a round that a checkpoint was written before the end of; leave the epoch if no node is left."""
        self.end_rounds()
        return None if self.open.any() else -1

    # ----------------------------------------------------------------------------------------------- evaluation

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """How anomalous every node is: float64 [N] in [0, 1]."""
        edges = with_loops(batch["edges"], len(batch["x"]))
        detectors: list[Any] = list(self.detectors)[: int(self.done)] or [deepcopy(self.network).eval()]
        found = [gaps(each.eval()(batch["x"], edges), batch["label"]) for each in detectors]
        return cascade(torch.stack(found), self.confidence)

    def known(self, score: Tensor) -> Tensor:
        """The percentage of nodes whose type any detector predicts."""
        rounds = max(1, int(self.done))
        return 100 * (score < (rounds + 0.5) / (rounds + 1)).float().mean()

    def set_threshold(self, score: Tensor) -> None:
        """Let `false_alarms` of these scores of benign nodes lie above the threshold."""
        self.threshold.copy_(score.sort().values[min(len(score) - 1, int((1 - self.false_alarms) * len(score)))])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Set the threshold, and log it and the percentage of `types` that is predicted right."""
        score = self.score(batch)
        self.set_threshold(score)
        self.log("val/types", self.known(score), prog_bar=True, batch_size=1)
        self.log("val/threshold", self.threshold.float(), batch_size=1)

    def on_test_start(self) -> None:
        """Forget the last test, and set the threshold again if the data have a validation part."""
        self.seen = []
        for batch in self.trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
            self.set_threshold(self.score({key: value.to(self.device) for key, value in batch.items()}))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score the nodes."""
        seen = {key: batch[key] for key in ("edges", "label", "index", "graph", "attack")}
        self.seen.append({key: value.cpu() for key, value in {**seen, "score": self.score(batch)}.items()})

    def on_test_epoch_end(self) -> None:
        """Log the scores, and what the training has cost."""
        for name, value in self.scores().items():
            self.log(f"test/{name}", value.float())
        for name, cost in self.facts.items():
            self.log(f"test/{name}", float(cost))
        if self.facts:
            self.log("test/fit_cpu", self.facts["distil_cpu"] + self.facts["detector_cpu"])

    def tested(self) -> dict[str, Tensor]:
        """What the last test has seen, as one graph."""
        first, parts = 0, []
        for batch in self.seen:
            parts.append({**batch, "edges": batch["edges"] + first})
            first += len(batch["score"])
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def scores(self) -> dict[str, Tensor]:
        """The scores of the last test, in percent."""
        seen = self.tested()
        known = seen["attack"] >= 0
        score, attack, edges = seen["score"], seen["attack"] == 1, seen["edges"]
        alarm = score > self.threshold.cpu()
        found = {
            "types": self.known(score),
            "false_alarms": 100 * alarm[seen["attack"] == 0].float().mean(),
            **ranking(score[known], attack[known]),
        }
        if attack.any():
            found["mcc"] = 100 * matthews(alarm[known], attack[known])
            near = ranking(*tolerant(score, attack, edges, self.hops))
            found |= {f"{name}_tolerant": value for name, value in near.items()}
            found["mcc_tolerant"] = 100 * tolerant_matthews(alarm, attack, edges, self.hops)
        _, of_graph, attacked = graph_scores(seen, self.top)
        return found | {f"graph_{name}": value for name, value in ranking(of_graph, attacked).items()}

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return `index`, `graph` and `label` int64 [N], and `score` float64 [N]."""
        return {key: batch[key] for key in ("index", "graph", "label")} | {"score": self.score(batch)}

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Write `predictions.csv`: `graph,index,type,name,score,anomalous`, the most anomalous node first."""
        text, types = io.StringIO(), (self.spec or {})["class_names"]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["graph", "index", "type", "name", "score", "anomalous"])
        every = {key: torch.cat([batch[key] for batch in predictions]) for key in predictions[0]}
        order = every["score"].argsort(descending=True, stable=True)
        rows = zip(*(every[key][order].tolist() for key in ("graph", "index", "label", "score")))
        for graph, index, label, score in rows:
            title, name = self.title(graph), self.name_of(index)
            writer.writerow([title, index, types[label], name, f"{score:.6g}", int(score > float(self.threshold))])
        write_text(folder / "predictions.csv", text.getvalue())
        return folder / "predictions.csv"

    def name_of(self, index: int) -> str:
        """What the data call a node."""
        names = getattr(self.trainer.datamodule, "names", None)  # type: ignore[attr-defined]
        return names[index] if names else str(index)

    def title(self, graph: int) -> str:
        """What the data call a graph."""
        titles = getattr(self.trainer.datamodule, "titles", None)  # type: ignore[attr-defined]
        return titles[graph] if titles else str(graph)

    # ---------------------------------------------------------------------------------------------------- results

    def figures(self) -> dict[str, Figure]:
        """Draw the most anomalous nodes and graphs by name, the scores, and the small graph."""
        if not self.seen or self.small is None:
            return {}
        seen, types, threshold = self.tested(), (self.spec or {})["class_names"], float(self.threshold)
        nodes = seen["score"].argsort(descending=True, stable=True)[:30]
        numbers = zip(*(seen[key][nodes].tolist() for key in ("graph", "label", "index")))
        names = [f"{self.title(graph)}: {types[label]} {self.name_of(index)}" for graph, label, index in numbers]
        graphs, of_graph, attacked = graph_scores(seen, self.top)
        order = of_graph.argsort(descending=True, stable=True)[:60]
        small = {key: value.cpu() for key, value in self.small.items()}
        whole = self.training_graph()["label"].cpu()
        return {
            "Most anomalous nodes": ranking_figure(names, seen["score"][nodes], seen["attack"][nodes], threshold),
            "Most anomalous graphs": ranking_figure(
                [self.title(number) for number in graphs[order].tolist()],
                of_graph[order],
                attacked[order].long(),
                math.nan,
            ),
            "Scores": scores_figure(seen["score"], seen["attack"], threshold),
            "Small graph": graph_figure(small, small["label"], types),
            "Types": balance_figure(whole, small["label"], types),
        }

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the detectors and the small graph: see `kdzoo.export.detectors`."""
        spec, threshold = dict(self.spec or {}), float(self.threshold)
        detectors: list[Any] = list(self.detectors)[: int(self.done)] or [self.network]
        facts = {
            "confidence": self.confidence,
            "threshold": threshold if math.isfinite(threshold) else None,
            "arguments_of_the_method": plain(dict(self.hparams)),
            "spec": {key: spec[key] for key in ("classes", "features", "class_names")},
            "scores": scores or {},
        }
        return export_detectors(detectors, self.small, facts, folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the small graph, what of it is not settled, and what it has cost."""
        super().on_save_checkpoint(checkpoint)
        if self.small is not None:
            checkpoint["small"] = {key: value.cpu() for key, value in self.small.items()}
            checkpoint["open"], checkpoint["facts"] = self.open.cpu(), dict(self.facts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know them again."""
        super().on_load_checkpoint(checkpoint)
        if "small" in checkpoint:
            self.small, self.open, self.facts = checkpoint["small"], checkpoint["open"], dict(checkpoint["facts"])


def gaps(logits: Tensor, label: Tensor) -> Tensor:
    """How far the logit of the right type is above all others, float64 [N], of logits [N, C] and labels int64 [N].

    The margin (p_1 - p_2) / p_1 of a type that is predicted is 1 - exp(-gap); in double precision, sure nodes differ.
    """
    logits = logits.double()
    own = logits.gather(1, label[:, None])
    return (own - logits.scatter(1, label[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]


def gap_of(confidence: float) -> float:
    """The gap of a margin."""
    return -math.log1p(-confidence)


def cascade(gap: Tensor, confidence: float) -> Tensor:
    """How anomalous nodes are, float64 [N] in [0, 1], of the gaps [R, N] of R detectors in the order of their rounds.

    With q = p_other / (p_type + p_other), and q* that of the margin `confidence`: (r + q_r / q*) / (R + 1) where r = 0,
    1 ... is the first detector with q_r <= q*, and (R + min q) / (R + 1) without one.
    """
    chance, bound = (-gap).sigmoid(), 1 / (1 + math.exp(gap_of(confidence)))
    settled = gap >= gap_of(confidence)
    first = settled.int().argmax(0)
    sure = first + (chance.gather(0, first[None])[0] / bound).clamp(max=1)
    return torch.where(settled.any(0), sure, len(gap) + chance.amin(0)) / (len(gap) + 1)


def graph_scores(seen: dict[str, Tensor], top: float) -> tuple[Tensor, Tensor, Tensor]:
    """The graphs of scored nodes: numbers int64 [G], mean of the `top` share of scores [G], and bool [G]: attacked."""
    numbers, place = seen["graph"].unique(return_inverse=True)
    order = seen["score"].argsort(descending=True, stable=True)
    order = order[place[order].argsort(stable=True)]  # graph by graph, the highest first
    of, sizes = place[order], place.bincount()
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[of]
    head = rank < (top * sizes).ceil()[of]
    sums = torch.zeros(len(numbers), dtype=seen["score"].dtype).index_add_(0, of[head], seen["score"][order[head]])
    attacked = torch.zeros(len(numbers), dtype=torch.bool).index_fill(0, place[seen["attack"] != 0], True)
    return numbers, sums / of[head].bincount(), attacked


def with_loops(edges: Tensor, nodes: int) -> Tensor:
    """Edges int64 [E, 2], and one from every node to itself."""
    own = torch.arange(nodes, device=edges.device)
    return torch.cat([edges, torch.stack([own, own], 1)])
