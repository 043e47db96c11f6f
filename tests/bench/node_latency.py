"""What it costs to classify nodes: a graph network, which has to fetch neighbours, against the MLPs that it teaches.

    python tests/bench/node_latency.py [--json FILE]

The graph is the embedded one of 14,213 packages; the networks have two layers of 128, as those of the proofs, and
random weights, which cost the same. `ten` is ten random nodes, from their numbers to their logits: the graph network's
neighbours of two hops are looked up in rows of neighbours and their features gathered, of an MLP only the ten features
are. `whole` is all nodes in one go. The arms take turns; given are the medians of CPU-seconds. NOSMOG's MLP also reads
the positions of its nodes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kdzoo.datamodules.debian_dependencies import DebianDependencies
from kdzoo.graph.networks import NodeNetwork

HOPS, HIDDEN, POSITION = 2, 128, 32


class Neighbours:
    """Rows of neighbours: those of a node lie side by side."""

    def __init__(self, edges: Tensor, nodes: int) -> None:
        self.sources = edges[edges[:, 1].argsort(stable=True), 0]
        self.count = edges[:, 1].bincount(minlength=nodes)
        self.first = self.count.cumsum(0) - self.count

    def around(self, nodes: Tensor, hops: int) -> tuple[Tensor, Tensor]:
        """The nodes [n] within some hops of `nodes`, which come first, and the edges [E, 2] that lead to them."""
        found, ends, new = nodes, torch.zeros(0, 2, dtype=torch.long), nodes
        for _ in range(hops):
            counts = self.count[new]
            start = counts.cumsum(0) - counts
            at = torch.arange(int(counts.sum())) + (self.first[new] - start).repeat_interleave(counts)
            step = torch.stack([self.sources[at], new.repeat_interleave(counts)], 1)
            ends = torch.cat([ends, step])
            seen = step[:, 0].unique()
            new = seen[~torch.isin(seen, found)]
            found = torch.cat([found, new])
        order = found.argsort()
        place = torch.searchsorted(found[order], ends)
        return found, order[place]


def median(arms: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Median CPU-seconds of each arm, which gets the number of the round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arm in arms.items():
            start = time.process_time()
            arm(number)
            if number:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


@torch.inference_mode()
def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Medians of `ten` and `whole`, for each network."""
    data = DebianDependencies(size="14k")
    data.setup()
    graph, spec = data.parts["test"], data.spec
    x, edges = graph["x"], graph["edges"]
    torch.manual_seed(0)
    position = torch.randn(len(x), POSITION)
    features, classes = spec["features"], spec["classes"]
    sage, mlp = (NodeNetwork(name, features, classes, HIDDEN).eval() for name in ("sage", "mlp"))
    nosmog = NodeNetwork("mlp", features + POSITION, classes, HIDDEN).eval()
    neighbours = Neighbours(edges, len(x))
    drawn = [torch.randperm(len(x))[:10] for _ in range(rounds + 1)]
    none = edges[:0]

    def fetch(number: int) -> Tensor:
        found, ends = neighbours.around(drawn[number], HOPS)
        return sage(x[found], ends)[:10]

    torch.testing.assert_close(fetch(0), sage(x, edges)[drawn[0]])  # what is fetched is all that counts
    ten: dict[str, Callable[[int], Any]] = {
        "sage": fetch,
        "glnn": lambda number: mlp(x[drawn[number]], none),
        "nosmog": lambda number: nosmog(torch.cat([x[drawn[number]], position[drawn[number]]], 1), none),
    }
    whole: dict[str, Callable[[int], Any]] = {
        "sage": lambda number: sage(x, edges),
        "glnn": lambda number: mlp(x, none),
        "nosmog": lambda number: nosmog(torch.cat([x, position], 1), none),
    }
    return {"ten": median(ten, rounds), "whole": median(whole, max(3, rounds // 10))}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.rounds)
    table = Table(box=None, pad_edge=False)
    for column in ("", "ten nodes", "faster", "whole graph", "faster"):
        table.add_column(column)
    for name in found["ten"]:
        row = [name]
        for case in ("ten", "whole"):
            row += [f"{1000 * found[case][name]:.2f} ms", f"{found[case]['sage'] / found[case][name]:.1f} x"]
        table.add_row(*row)
    Console(width=120).print(table)
    passed = all(found[case]["glnn"] < found[case]["sage"] for case in found)
    if options.json:
        rounded = {case: {name: round(value, 6) for name, value in each.items()} for case, each in found.items()}
        options.json.write_text(json.dumps({"cpu_seconds": rounded, "passed": passed}, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
