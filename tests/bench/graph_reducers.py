"""What the training-free reducers cost on synthetic graphs of 10 thousand to a million edges, in seconds and memory.

    python tests/bench/graph_reducers.py [--json FILE]

A graph of ten edges per node within and between ten communities, 32 features, every node labelled with its community,
is reduced to a hundredth. Every reducer and size has a process of its own; memory is the most that it has had of its
own, above what it had after its imports and the making of the graph.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

REDUCERS = ("random", "herding", "k_center", "partition", "heavy_edge", "variation_neighbourhoods")
EDGES = (10_000, 100_000, 1_000_000)
LIMIT = 4096  # MB for all


def measure(name: str, edges: int) -> dict[str, float]:
    """Seconds and peak memory of one reduction."""
    import torch

    from kdzoo.callbacks import Cost
    from kdzoo.graph.reducers import make_reducer

    torch.manual_seed(0)
    nodes = edges // 10
    label = torch.arange(nodes) % 10
    one = torch.randint(nodes, (edges, 2))
    within = torch.rand(edges) < 0.7  # these edges stay in the community
    one[within, 1] = (one[within, 1] // 10 * 10 + label[one[within, 0]]).clamp(max=nodes - 1)
    one = one[one[:, 0] != one[:, 1]]
    x = torch.randn(nodes, 32) + torch.eye(32)[label]
    graph = {"x": x, "edges": torch.cat([one, one.flip(1)]), "label": label}
    cost = Cost(every=0.01)
    small = make_reducer(name).reduce(graph, 0.01)
    measured = cost.stop()
    assert len(small["x"]) == nodes // 100
    return {"cpu_seconds": measured["cpu_seconds"], "peak_mb": measured["peak_mb"]}


def main() -> int:
    """Measure each in a process, print, and say whether all stay within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("REDUCER", "EDGES"), help="measure this one in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return 0
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in REDUCERS:
        for edges in EDGES:
            command = [sys.executable, __file__, "--one", name, str(edges)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.setdefault(name, {})[str(edges)] = json.loads(done.stdout.splitlines()[-1])
    table = Table(box=None, pad_edge=False)
    for column in ("", *(f"{edges:,} edges" for edges in EDGES)):
        table.add_column(column)
    for name, sizes in found.items():
        table.add_row(name, *(f"{each['cpu_seconds']:.2f} s, {each['peak_mb']:.0f} MB" for each in sizes.values()))
    Console(width=120).print(table)
    passed = all(each["peak_mb"] <= LIMIT for sizes in found.values() for each in sizes.values())
    if options.json:
        options.json.write_text(json.dumps({"cost": found, "limit_mb": LIMIT, "passed": passed}, indent=1) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
