"""`Condenser`: what methods share that make a small graph in place of a large one, from the start to the export."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from kdzoo.console import say
from kdzoo.errors import UserError
from kdzoo.export.condensed_graph import export_condensed_graph, size_in_bytes
from kdzoo.graph.evaluation import Evaluation, Judges
from kdzoo.graph.matrix import MatrixNetwork, compact, matrix_of
from kdzoo.graph.pictures import balance_figure, graph_figure, spectrum_figure
from kdzoo.graph.reducers import Graph, make_reducer, shares
from kdzoo.method import Method, plain
from kdzoo.teachers import sources

Init = Literal["random", "herding", "k_center", "noise"]
KEYS = ("x", "edges", "label", "weight")


class Condenser(Method):
    """Makes a condensed graph of a graph with some labelled nodes.

    One step of the Trainer is one iteration. Its batch is not used: the training graph is read once and stays at hand
    in `real`. A subclass implements `distil_step`, which leaves the gradient of the iteration's last update in the
    parameters, and `final_graph` where the nodes have edges. Every process does the same work.

    The condensed nodes keep the shares of the classes (`kdzoo.graph.reducers.shares`), class by class, one of each at
    least. They start as labelled nodes that a reducer chooses, or as standard normal noise.

    Evaluation: fresh networks are trained on the condensed graph alone and tested on the whole one, see
    `kdzoo.graph.evaluation`. Logged are the mean `accuracy` of their last states in percent, `accuracy_std`, `bytes` of
    the condensed graph and `bytes_whole` of the real one, the `distil_seconds` of the fit, and the `judge_seconds` that
    a network trains; on request `accuracy_whole` and `judge_seconds_whole` of networks trained on the whole graph.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        lr_feat: Learning rate of the features' Adam.
        evaluation: How the condensed graph is judged.

    Attributes:
        x: Parameter [n, F], class by class.
        labels: int64 [n].
        real: The training graph on the device; only in a fit.
        real_x: Its features, sparse where that is the faster.
        matrix: Its normalised adjacency (`kdzoo.graph.matrix`).
    """

    modality = "node_graph"
    x: nn.Parameter
    labels: Tensor
    ready: Tensor
    real: Graph
    real_x: Tensor
    matrix: Tensor | None

    def __init__(self, rate: float, init: Init, lr_feat: float, evaluation: Evaluation) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise UserError(f"{type(self).__name__}: rate={rate} is a share of the labelled nodes: give one in (0, 1].")
        self.automatic_optimization = False
        self.rate, self.init, self.lr_feat = rate, init, lr_feat
        self.evaluation = Evaluation(**evaluation) if isinstance(evaluation, dict) else evaluation
        self.provenance: dict[str, Any] = {}
        self.seconds = 0.0

    def build(self, spec: dict[str, Any]) -> None:
        """Make the condensed nodes, empty until a fit starts; a subclass adds its own after this."""
        self.evaluation.fresh(spec)  # complain about an impossible network now
        labels = self._condensed_labels() if self._trainer is not None else torch.zeros(0, dtype=torch.long)
        self.x = nn.Parameter(torch.zeros(len(labels), spec["features"]))
        self.register_buffer("labels", labels)
        self.register_buffer("ready", torch.tensor(False))  # whether the nodes have their start
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.judges: dict[str, Judges] = {}
        self.tested: Graph | None = None

    def _condensed_labels(self) -> Tensor:
        label = self.training_graph()["label"]
        known = label[label >= 0]
        if not len(known):
            raise UserError(f"{type(self).__name__}: no node of the training part has a label.")
        counts = shares(label, max(len(known.unique()), round(self.rate * len(known))))
        return torch.cat([torch.full((count,), number) for number, count in counts.items()])

    def training_graph(self) -> Graph:
        """The graph that the data module gives for training."""
        batch = next(iter(self.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
        return {key: batch[key] for key in KEYS if key in batch}

    def summary(self) -> str:
        """Say how many nodes there are."""
        return f"{len(self.x):,} condensed nodes"

    def configure_optimizers(self) -> Any:
        """Adam on the features."""
        return torch.optim.Adam([self.x], lr=self.lr_feat)

    # ------------------------------------------------------------------------------------------------- distilling

    def on_fit_start(self) -> None:
        """Read the training graph, and give the nodes their start unless a checkpoint did."""
        began = time.perf_counter()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.real = {key: value.to(self.device) for key, value in self.training_graph().items()}
        self.real_x, self.matrix = compact(self.real["x"]), matrix_of(self.real)
        digest = data.fingerprint() if hasattr(data, "fingerprint") else ""
        self.provenance = {"data": type(data).__name__, "data_hash": digest, "seed": self.seed}
        self.study()
        if not self.ready:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(self.seed)
                self.start()
            self.ready.fill_(True)
        self.seconds += time.perf_counter() - began

    def study(self) -> None:
        """Learn from the training graph what is needed, before the condensed nodes have their start."""

    def start(self) -> None:
        """Fill `x` before the first iteration; random numbers are a function of the run's seed alone."""
        if self.init == "noise":
            self.x.copy_(torch.randn(self.x.shape))
        else:
            chosen = make_reducer(self.init).reduce(self.real, len(self.x) / len(self.real["x"]))
            self.x.copy_(chosen["x"][chosen["label"].argsort(stable=True)])

    def of_class(self, values: Tensor, labels: Tensor) -> list[Tensor]:
        """The rows of `values` of each class that has condensed nodes, in order."""
        return [values[labels == number] for number in self.labels.unique().tolist()]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Make one iteration and log its terms."""
        began = time.perf_counter()
        optimizers: Any = self.optimizers()
        optimizer = optimizers[0] if isinstance(optimizers, list) else optimizers
        terms = self.distil_step()
        optimizer.step()  # Lightning counts it: whatever else an iteration does, it is one step of the Trainer
        optimizer.zero_grad()
        self.after_step()
        self.terms = {f"train/{name}": term.detach() for name, term in terms.items()}
        self.log_dict(self.terms)
        loss = torch.stack(list(self.terms.values())).sum()
        self.log("train/loss", loss, prog_bar=True)
        self.seconds += time.perf_counter() - began
        return loss

    def distil_step(self) -> dict[str, Tensor]:
        """Leave the gradient of an iteration's last update in the parameters, and return the loss's terms."""
        raise NotImplementedError

    def backward_to(self, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Leave the loss's gradient in these parameters, and none in any other."""
        for parameter in self.parameters():
            parameter.grad = None
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)):
            parameter.grad = gradient

    def after_step(self) -> None:
        """Do what follows an update."""

    # ------------------------------------------------------------------------------------------------- the result

    def final_graph(self) -> Graph:
        """The condensed graph; by default without edges."""
        edges = torch.zeros(0, 2, dtype=torch.long, device=self.x.device)
        return {"x": self.x.detach(), "edges": edges, "label": self.labels.detach()}

    def final_labels(self) -> Tensor:
        """The labels that networks learn: int64 [n], or probabilities [n, C]."""
        return self.final_graph()["label"]

    def on_validation_start(self) -> None:
        """Train networks on the condensed graph, unless the fit goes on."""
        if self.evaluation.during_fit or self.trainer.state.fn != "fit":
            self._train_judges()

    def on_test_start(self) -> None:
        """Train networks on the condensed graph."""
        self._train_judges()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judge by the validation nodes."""
        self._judge(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judge by the test nodes."""
        self._judge(batch)
        self.tested = {key: batch[key].cpu() for key in KEYS if key in batch}

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores, and what the condensed graph costs."""
        self._score("test")
        whole = self.training_graph()
        self.log("test/bytes", float(size_in_bytes(self.final_graph(), self.final_labels())))
        self.log("test/bytes_whole", float(size_in_bytes(whole, whole["label"])))
        self.log("test/distil_seconds", self.seconds)

    def _train_judges(self) -> None:
        if not sources.untrained():
            say("judges", f"{self.evaluation.networks} fresh networks train on the condensed graph")
        self.judges = {"": self._judges(self.final_graph(), self.final_labels())}
        if self.evaluation.whole:
            real = {key: value.to(self.device) for key, value in self.training_graph().items()}
            self.judges["_whole"] = self._judges(real, real["label"])

    def _judges(self, graph: Graph, labels: Tensor) -> Judges:
        return Judges(graph, labels, dict(self.spec or {}), self.evaluation, self.seed)

    def _judge(self, batch: dict[str, Tensor]) -> None:
        if self.judges:
            matrix = matrix_of({key: batch[key] for key in KEYS if key in batch})
            for judges in self.judges.values():
                judges.update(compact(batch["x"]), matrix, batch["label"])

    def _score(self, part: str) -> None:
        for name, judges in self.judges.items():
            scores = judges.percent()
            self.log(f"{part}/accuracy{name}", scores.mean(), prog_bar=part == "val")
            self.log(f"{part}/accuracy_std{name}", scores.std() if len(scores) > 1 else torch.zeros_like(scores[0]))
            if part == "test":
                self.log(f"test/judge_seconds{name}", judges.seconds)
        self.judges = {}

    def figures(self) -> dict[str, Figure]:
        """Draw the condensed graph, its class balance and its spectrum."""
        if self.tested is None or self.spec is None:
            return {}
        graph = {key: value.cpu() for key, value in self.final_graph().items()}
        labels, names = self.final_labels().cpu(), self.spec["class_names"]
        hard = labels.argmax(1) if labels.is_floating_point() else labels
        whole = self.training_graph()
        return {
            "Condensed graph": graph_figure(graph, hard, names),
            "Class balance": balance_figure(whole["label"].cpu(), hard, names),
            "Spectrum": spectrum_figure(self.tested, graph),
        }

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the condensed graph: see `kdzoo.export.condensed_graph`."""
        spec = dict(self.spec or {})
        facts = {
            "method": type(self).__name__,
            "arguments": plain(dict(self.hparams)),
            **self.provenance,
            "spec": {key: spec[key] for key in ("classes", "features", "class_names")},
            "scores": scores or {},
        }
        return export_condensed_graph(self.final_graph(), self.final_labels(), facts, folder)

    def fresh_network(self, name: str, hidden: int, layers: int) -> MatrixNetwork:
        """A new network on the device, with weights from torch's generator."""
        assert self.spec is not None
        return MatrixNetwork(name, self.spec["features"], self.spec["classes"], hidden, layers).to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the graph comes from, and what it has cost."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["provenance"], checkpoint["seconds"] = dict(self.provenance), self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know where the graph comes from; without data at hand, take the sizes from the checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self.provenance, self.seconds = dict(checkpoint.get("provenance", {})), checkpoint.get("seconds", 0.0)
        if not len(self.x):
            self.take_sizes(checkpoint["state_dict"])

    def take_sizes(self, state: dict[str, Tensor]) -> None:
        """Give parameters and buffers the sizes that they have in a state."""
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if name in state:
                tensor.data = torch.empty_like(state[name], device=tensor.device)
