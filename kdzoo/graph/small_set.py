"""`SmallSet`: a few graphs that stand for many, and `DistilledGraphs`: training on them alone."""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdzoo.console import say
from kdzoo.datamodules.augment import hash32
from kdzoo.datamodules.graph_set_data import Graphs, GraphSetData, spans
from kdzoo.errors import UserError
from kdzoo.export.graph_network import export_graph_network
from kdzoo.graph.graph_classifier import INPUTS, GraphClassifier
from kdzoo.graph.graph_networks import Pool
from kdzoo.optim import Optim
from kdzoo.teachers import sources


@dataclass(eq=False)
class SmallSet:
    """Graphs to train on in place of others.

    Attributes:
        graphs: The graphs; the edges of patterns go one way only.
        weight: How often each is drawn, in proportion, float32 [G].
        degree: int64 [N], how many neighbours a node had where it comes from; None: as many as it has here.
        root: bool [N], the nodes that a network pools; None: all.
    """

    graphs: Graphs
    weight: Tensor
    degree: Tensor | None = None
    root: Tensor | None = None

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """The graphs at `rows` as one, with `degree` and `root` where the set has them."""
        union: dict[str, Tensor] = {**self.graphs.take(rows).union(), "index": rows}
        at = spans(self.graphs.nodes, rows)
        for name, values in (("degree", self.degree), ("root", self.root)):
            if values is not None:
                union[name] = values[at]
        return union

    def bytes_each(self) -> Tensor:
        """Bytes of each graph, int64 [G]; see `Graphs.bytes_each`.

        A pattern's edges go one way, its degrees are int32, its roots one byte each, and its frequency int32.
        """
        if self.root is None:
            return self.graphs.bytes_each()
        return (4 * self.graphs.x.shape[1] + 5) * self.graphs.nodes + 9 * self.graphs.bonds + 5

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of the set."""
        found = {name: getattr(self.graphs, name) for name in ("x", "edges", "kind", "nodes", "bonds", "labels")}
        found |= {"weight": self.weight}
        found |= {} if self.degree is None or self.root is None else {"degree": self.degree, "root": self.root}
        return {name: tensor.contiguous() for name, tensor in found.items()}


def keep_in(sizes: Tensor, label: Tensor, budgets: list[float]) -> Tensor:
    """Which graphs fit, in their order: each class has a budget in bytes, and a graph that does not fit is passed over.

    Args:
        sizes: bytes, int64 [G].
        label: int64 [G].
        budgets: bytes of each class.

    Returns:
        Rows int64 [g], ascending.
    """
    left, kept = list(budgets), []
    for row, (size, of) in enumerate(zip(sizes.tolist(), label.tolist())):
        if size <= left[of]:
            left[of] -= size
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64)


def training_graphs(data: Any) -> Graphs:
    """The graphs of a data module's training part; of batches, where it is none of many graphs."""
    if isinstance(data, GraphSetData):
        data.setup()
        assert isinstance(data.train_set, Graphs)
        return data.train_set
    return joined([_apart(batch) for batch in data.train_dataloader()])


def joined(parts: list[Graphs]) -> Graphs:
    """Graphs one after the other."""
    names = ("images", "labels", "edges", "kind", "nodes", "bonds")
    every: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Graphs(**every)


def _apart(batch: dict[str, Tensor]) -> Graphs:
    """Undo `Graphs.union`, whatever the order of the nodes; edges between graphs are dropped."""
    order = batch["graph"].argsort(stable=True)
    count, graph = len(batch["label"]), batch["graph"]
    nodes = graph.bincount(minlength=count)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    place -= (nodes.cumsum(0) - nodes)[graph]
    of = graph[batch["edges"]]
    inside = (of[:, 0] == of[:, 1]).nonzero()[:, 0]
    inside = inside[of[inside, 0].argsort(stable=True)]
    return Graphs(
        images=batch["x"][order],
        labels=batch["label"],
        edges=place[batch["edges"][inside]],
        kind=batch["kind"][inside],
        nodes=nodes,
        bonds=of[inside, 0].bincount(minlength=count),
    )


class DistilledGraphs(GraphClassifier):
    """Distils the training part when a fit starts, and trains the student on the result; a subclass has `distil`.

    The batches of the data module are not used: a step draws `batch_size` graphs of the small set. What a step draws is
    a function of the seed and the step alone. Beside the scores, the test logs `bytes` of the small set, its `graphs`,
    `compression` (bytes of all graphs over its own) and `distil_seconds`, which are part of the fit's.

    Args:
        bytes: The most bytes that the small set may have; None: no bound.
        batch_size: Graphs of a step.
        student, hidden, layers, dropout, norm, pool, optim: As for `GraphClassifier`.
    """

    def __init__(
        self,
        bytes: int | None,
        batch_size: int,
        student: str,
        hidden: int,
        layers: int,
        dropout: float,
        norm: str | None,
        pool: Pool,
        optim: Optim,
    ) -> None:
        super().__init__(student, hidden, layers, dropout, norm, pool, optim)
        if batch_size < 1 or (bytes is not None and bytes < 1):
            raise UserError(f"{type(self).__name__}: batch_size={batch_size} and bytes={bytes} must be 1 or more.")
        self.bytes, self.batch_size = bytes, batch_size
        self.small: SmallSet | None = None
        self.facts: dict[str, float] = {}

    def distil(self, graphs: Graphs) -> SmallSet:
        """Make the small set; without a random state but `self.seed`."""
        raise NotImplementedError

    def budgets(self, graphs: Graphs) -> list[float]:
        """How many bytes each class may have: its share of `bytes`."""
        sizes = graphs.labels.bincount(minlength=(self.spec or {})["classes"])
        whole = float("inf") if self.bytes is None else float(self.bytes)
        return [whole * float(size) / len(graphs) if size else 0.0 for size in sizes]

    def on_fit_start(self) -> None:
        """Distil. A run that is continued does it again: it takes seconds, and gives the same."""
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        begin = time.perf_counter()
        graphs = training_graphs(self.trainer.datamodule)  # type: ignore[attr-defined]
        self.small = self.distil(graphs)
        own, every = int(self.small.bytes_each().sum()), int(graphs.bytes_each().sum())
        self.facts = {"bytes": own, "compression": every / own, "graphs": len(self.small)}
        self.facts["distil_seconds"] = time.perf_counter() - begin
        if not sources.untrained():
            say("small set", f"{len(self.small):,} graphs, {own:,} bytes of {every:,}: {every / own:.1f} times fewer")

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` on graphs of the small set."""
        drawn = {name: tensor.to(self.device) for name, tensor in self.drawn(self.trainer.global_step).items()}
        inputs = {name: drawn[name] for name in (*INPUTS, "degree", "root") if name in drawn}
        return {"ce": cross_entropy(self.student(**inputs), drawn["label"])}

    def drawn(self, step: int) -> dict[str, Tensor]:
        """The batch of a step."""
        assert self.small is not None
        random = torch.Generator().manual_seed(int(hash32(self.seed, step)))
        return self.small.batch(torch.multinomial(self.small.weight, self.batch_size, True, generator=random))

    def on_test_epoch_end(self) -> None:
        """Log what the small set costs."""
        for name, value in self.facts.items():
            self.log(f"test/{name}", float(value))

    def export(self, folder: Any, scores: dict[str, float] | None = None) -> list[str]:
        """Write the student, and the small set as `graphs.safetensors`."""
        tensors = {} if self.small is None else self.small.tensors()
        return export_graph_network(self.student, dict(self.spec or {}), folder, scores, tensors)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is known of the small set."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["facts"] = dict(self.facts)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know it again."""
        super().on_load_checkpoint(checkpoint)
        self.facts = dict(checkpoint.get("facts", {}))


def shuffled(count: int, seed: int) -> Tensor:
    """The numbers below `count` in a random order."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(count))
