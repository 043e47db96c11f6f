"""Write the embedded dependency graphs from Debian's index of packages.

Run as `python -m kdzoo.assets.build_debian_dependencies Packages`, with the index of bookworm's main archive as text
(`/usr/lib/apt/apt-helper cat-file /var/lib/apt/lists/*_Packages*`). A node is a package of one of the sections, an edge
a dependency of any strength between two of them, a feature one of the 1,000 commonest words of the one-line
descriptions. Kept is the largest connected component; the small graph is a snowball sample of it: from the first
package on, up to five random neighbours of every one. Descriptions are not kept, only numbers of words.
"""

import argparse
import hashlib
import re
from collections import Counter, deque
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from kdzoo.datamodules.debian_dependencies import SECTIONS

RELATIONS = ("Depends", "Pre-Depends", "Recommends", "Suggests", "Enhances")
WORDS, SMALL, FOLLOWED = 1000, 4000, 5


def read_index(text: str) -> dict[str, dict[str, str]]:
    """The fields of every package that is kept, by its name; the first of several versions."""
    packages: dict[str, dict[str, str]] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.split("\n") if re.match(r"[A-Z][\w-]*: ", line))
        name = fields.get("Package", "")
        if fields.get("Section") in SECTIONS.split() and not name.endswith(("-doc", "-dbg")):
            packages.setdefault(name, fields)
    return packages


def neighbours(fields: dict[str, str]) -> set[str]:
    """The packages that one names, without versions and architectures, alternatives each by itself."""
    named = ",".join(fields.get(relation, "") for relation in RELATIONS)
    return {re.split(r"[\s(:\[]", part.strip())[0] for part in re.split(r"[,|]", named)} - {""}


def snowball(edge: np.ndarray, start: int) -> np.ndarray:
    """The first `SMALL` nodes on the way from `start`, where at most `FOLLOWED` neighbours of each are followed."""
    random, beside = np.random.default_rng(0), dict[int, list[int]]()
    for one, other in edge.T.tolist():
        beside.setdefault(one, []).append(other)
        beside.setdefault(other, []).append(one)
    found, waiting = {start}, deque([start])
    while waiting:
        for node in random.permutation(beside[waiting.popleft()])[:FOLLOWED].tolist():
            if node not in found and len(found) < SMALL:
                found.add(node)
                waiting.append(node)
    return np.array(sorted(found))


def write(path: Path, keep: np.ndarray, edge: np.ndarray, label: np.ndarray, words: list[list[int]]) -> None:
    """Write the part of the graph that has only the nodes `keep`, numbered anew."""
    place = np.full(len(label), -1)
    place[keep] = np.arange(len(keep))
    inside = place[edge][:, (place[edge] >= 0).all(0)]
    found = [words[node] for node in keep]
    np.savez_compressed(
        path,
        edge=inside.astype(np.int32),
        y=label[keep].astype(np.int8),
        indptr=np.cumsum([0, *map(len, found)]).astype(np.int32),
        indices=np.concatenate(found).astype(np.int16),
    )
    print(path.name, len(keep), "nodes", inside.shape[1], "edges", hashlib.sha256(path.read_bytes()).hexdigest())


def main() -> None:
    """Build both, and print their sizes and SHA-256."""
    parser = argparse.ArgumentParser(description="Write the embedded dependency graphs.")
    parser.add_argument("packages", type=Path)
    packages = read_index(parser.parse_args().packages.read_text("utf-8"))
    names = sorted(packages)
    number = {name: place for place, name in enumerate(names)}
    pairs = {
        tuple(sorted((number[name], number[other])))
        for name, fields in packages.items()
        for other in neighbours(fields)
        if other in number and other != name
    }
    edge = np.array(sorted(pairs)).T
    texts = [set(re.findall(r"[a-z0-9+#]+", packages[name].get("Description", "").lower())) for name in names]
    graph = csr_array((np.ones(edge.shape[1]), (edge[0], edge[1])), shape=(len(names),) * 2)
    _, component = connected_components(graph, directed=False)
    large = np.flatnonzero(component == np.bincount(component).argmax())
    counts = Counter(word for node in large for word in texts[node])
    vocabulary = {
        word: place for place, (word, _) in enumerate(sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:WORDS])
    }
    words = [sorted(vocabulary[word] for word in text if word in vocabulary) for text in texts]
    label = np.array([SECTIONS.split().index(packages[name]["Section"]) for name in names])
    folder = Path(__file__).parent
    write(folder / "debian_deps_14k.npz", large, edge, label, words)
    write(folder / "debian_deps_4k.npz", snowball(edge, int(large[0])), edge, label, words)


if __name__ == "__main__":
    main()
