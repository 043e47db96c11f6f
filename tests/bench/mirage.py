"""How long mirage takes to find its patterns, against canonical trees, and how that grows with the graph.

python tests/bench/mirage.py [--json FILE]
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from kdzoo.datamodules.molecules import SETS, Molecules
from kdzoo.graph.mirage import classes_of, mine, pattern_graphs
from kdzoo.graph.trees import Adjacency, numbered, tree_classes

FASTER, MINING, MEMORY = 3.0, 20.0, 4.0  # times, seconds, GB
EDGES = (10_000, 100_000, 1_000_000)


def canonical(label: list[int], adjacency: Adjacency, hops: int) -> int:
    """How many trees there are, each written out with its children in order, from its root on."""
    first, other, kind = (values.tolist() for values in (adjacency.first, adjacency.other, adjacency.kind))

    def write(node: int, depth: int) -> str:
        if depth == 0:
            return str(label[node])
        span = range(first[node], first[node + 1])
        return f"{label[node]}({','.join(sorted(f'{kind[e]}:{write(other[e], depth - 1)}' for e in span))})"

    return len({write(node, hops) for node in range(len(label))})


def timed(work: object, *arguments: object) -> tuple[float, object]:
    """Seconds, and what came out."""
    begin = time.perf_counter()
    found = work(*arguments)  # type: ignore[operator]
    return time.perf_counter() - begin, found


def trees(name: str) -> list[dict[str, float]]:
    """Refinement against canonical trees for one to four hops."""
    union = {key: value.numpy() for key, value in Molecules(name).read().union().items()}  # type: ignore[arg-type]
    adjacency, label = Adjacency.of(len(union["x"]), union["edges"], union["kind"]), numbered(union["x"])
    rows = []
    for hops in (1, 2, 3, 4):
        fast, classes = timed(tree_classes, label, adjacency, hops)
        slow, count = timed(canonical, label.tolist(), adjacency, hops)
        assert classes.max() + 1 == count  # type: ignore[attr-defined]
        rows.append({"hops": hops, "classes": count, "seconds": fast, "canonical": slow, "times": slow / fast})
    return rows


def mining(support: float = 0.1) -> dict[str, float]:
    """All of B3DB from the molecules to the patterns, two hops."""
    union = {key: value.numpy() for key, value in Molecules().read().union().items()}

    def distil() -> int:
        adjacency = Adjacency.of(len(union["x"]), union["edges"], union["kind"])
        tree = classes_of(union["x"], adjacency, 2, degrees=False)
        least = [int(np.ceil(support * count)) for count in np.bincount(union["label"])]
        patterns = mine(tree, union["graph"], union["label"], adjacency.degree, least)
        return len(pattern_graphs(patterns, tree, union["x"], adjacency, 2))

    seconds, patterns = timed(distil)
    return {"support": support, "seconds": seconds, "patterns": patterns}  # type: ignore[dict-item]


def scale(count: int) -> dict[str, float]:
    """Random graphs of twenty nodes, ten labels and forty edges each; so many edges in all."""
    random, size = np.random.default_rng(0), 20
    graphs = count // 40
    one = random.integers(0, size, (count, 2)) + size * np.repeat(np.arange(graphs), 40)[:, None]
    one = np.unique(np.sort(one[one[:, 0] != one[:, 1]], 1), axis=0)
    edges, label = np.concatenate([one, one[:, ::-1]]), np.arange(graphs) % 2
    kind, x = np.zeros(len(edges), dtype=np.int64), np.eye(10, dtype=np.float32)[random.integers(0, 10, size * graphs)]

    def distil() -> int:
        adjacency = Adjacency.of(len(x), edges, kind)
        tree = classes_of(x, adjacency, 1, degrees=False)
        graph = np.arange(size * graphs) // size
        return len(mine(tree, graph, label, adjacency.degree, [max(2, graphs // 1000)] * 2))

    seconds, patterns = timed(distil)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"edges": len(one), "seconds": seconds, "patterns": patterns, "peak_gb": peak}  # type: ignore[dict-item]


def main() -> int:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = {"trees": {name: trees(name) for name in SETS}, "mining": mining(), "scale": [scale(n) for n in EDGES]}
    for name, rows in record["trees"].items():  # type: ignore[union-attr]
        for row in rows:
            print(
                f"{name}, {row['hops']} hops: {row['classes']} trees, {row['times']:.1f} times faster than written out"
            )
    print(f"mining 7,805 molecules: {record['mining']['seconds']:.2f} s, bound {MINING} s")  # type: ignore[index]
    for row in record["scale"]:
        print(f"{row['edges']:,} edges: {row['seconds']:.2f} s, peak {row['peak_gb']:.2f} GB")
    passed = (
        all(row["times"] >= FASTER for rows in record["trees"].values() for row in rows)  # type: ignore[union-attr]
        and record["mining"]["seconds"] <= MINING  # type: ignore[index]
        and record["scale"][-1]["peak_gb"] <= MEMORY  # type: ignore[index]
    )
    if options.json:
        options.json.write_text(json.dumps({**record, "passed": passed}, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
