"""An optimised condensation as a reducer: any method that learns a small graph, run for some steps."""

from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from kdzoo import registry
from kdzoo.errors import UserError
from kdzoo.graph.condenser import Condenser
from kdzoo.graph.reducers import Graph, Reducer, budget


class Condensed(Reducer):
    """Lets a condensation learn the small graph, in a Trainer of its own; soft labels become the likeliest class.

    Args:
        method: The registered name of a condensation: `gcondx`, `gcond`, `doscond`, `gcdm`, `sfgc` or `geom`.
        steps: Its iterations.
        arguments: Its own arguments; the rate is the reducer's.
    """

    def __init__(self, method: str = "doscond", steps: int = 20, arguments: dict[str, Any] | None = None) -> None:
        self.condenser = registry.find(registry.METHODS, method).load()
        if not issubclass(self.condenser, Condenser) or steps < 1:
            raise UserError(
                f"condensed: '{method}' must be a condensation of graphs such as gcondx, and steps={steps} > 0."
            )
        self.steps, self.arguments = steps, arguments or {}
        if "rate" in self.arguments:
            raise UserError("condensed: the condensation's rate is the reducer's: leave it out of the arguments.")

    def reduce(self, graph: Graph, rate: float) -> Graph:
        """Condense."""
        known = int((graph["label"] >= 0).sum())
        try:
            method = self.condenser(rate=min(1.0, budget(graph, rate) / max(1, known)), **self.arguments)
        except TypeError as error:
            raise UserError(f"condensed: {self.condenser.__name__} does not take these arguments: {error}.") from error
        trainer = Trainer(
            max_steps=self.steps,
            accelerator="cpu" if graph["x"].device.type == "cpu" else "gpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        trainer.fit(method, datamodule=OneGraph(graph))
        small, labels = method.final_graph(), method.final_labels()
        labels = labels.argmax(1) if labels.is_floating_point() else labels
        found = {**small, "label": labels}
        return {key: value.detach().to(graph["x"].device) for key, value in found.items()}


class OneGraph(LightningDataModule):
    """A graph that is at hand, as data to train on."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = {key: value.cpu() for key, value in graph.items()}
        classes = int(graph["label"].max()) + 1
        self.spec = {
            "modality": "node_graph",
            "classes": classes,
            "class_names": [str(number) for number in range(classes)],
            "features": graph["x"].shape[1],
            "keys": {},
        }

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The graph, without an end."""
        graphs: Any = [self.graph] * 1000
        return DataLoader(graphs, batch_size=None)

    def val_dataloader(self) -> list[DataLoader[dict[str, torch.Tensor]]]:
        """Nothing."""
        return []
