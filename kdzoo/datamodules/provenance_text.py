"""Features of provenance nodes: the words of a node's events, in the order of the log, as one vector.

    text of a node = [actor's name, kind of event, name of what it acts on] of every event that the node takes part in
    x_v = mean_i (word_i + place_i),   place_i = (sin(i / 10000^(2k/D)), cos(i / 10000^(2k/D)))_k

A word's vector is the signed sum of its hashed character 3- to 5-grams, of length sqrt(D): words that share parts are
alike, and a word that the training has not seen has a vector too. Nothing is learned. Text and places are those of
FLASH, which GraphDART's detector is; its words are vectors of a Word2Vec that knows the training's words alone.
"""

from zlib import crc32

import numpy as np
from scipy.sparse import csr_matrix

from kdzoo.datamodules.provenance_logs import EVENTS, TOWARDS_PROCESS
from kdzoo.datamodules.provenance_recordings import Recording

GRAMS = (3, 4, 5)
TOWARDS_ACTOR = [EVENTS.index(kind) for kind in TOWARDS_PROCESS]


def word_vector(word: str, size: int) -> np.ndarray:
    """The vector of a word: float32 [size], of length sqrt(size), zeros if nothing is left of it."""
    whole = f"<{word}>".encode()
    grams = {whole[at : at + length] for length in GRAMS for at in range(len(whole) - length + 1)} or {whole}
    vector = np.zeros(size, dtype=np.float32)
    for gram in sorted(grams):
        code = crc32(gram)
        vector[(code >> 1) % size] += 1 if code & 1 else -1
    return vector * np.float32(np.sqrt(size) / max(float(np.linalg.norm(vector)), 1e-12))


def places(count: int, size: int) -> np.ndarray:
    """Sines and cosines of the places 0 ... count - 1: float32 [count, size]."""
    angle = np.arange(count)[:, None] / 10000 ** (np.arange(0, size, 2) / size)
    return np.stack([np.sin(angle), np.cos(angle)], 2).reshape(count, -1)[:, :size].astype(np.float32)


def texts(recording: Recording) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The texts of all nodes, one after the other.

    Returns:
        Numbers of words int64 [T], where each node's text begins int64 [N + 1], and the words.
    """
    number: dict[str, int] = {}
    name = np.array([number.setdefault(each, len(number)) for each in recording.names], dtype=np.int64)
    action = np.array([number.setdefault(each, len(number)) for each in EVENTS], dtype=np.int64)
    source, target, kind = recording.events.T
    turned = np.isin(kind, TOWARDS_ACTOR)
    actor, other = np.where(turned, target, source), np.where(turned, source, target)
    phrases = np.stack([name[actor], action[kind], name[other]], 1)  # [M, 3]
    ends = np.concatenate([source, target])
    order = ends.argsort(kind="stable")  # node by node, in the order of the log
    begin = np.searchsorted(ends[order], np.arange(len(recording.types) + 1))
    return phrases[order % len(phrases)].ravel(), 3 * begin, list(number)


def text_features(recordings: list[Recording], size: int) -> np.ndarray:
    """The features of all nodes of some recordings, one after the other: float32 [N, size]."""
    known: dict[str, np.ndarray] = {}
    found = []
    for recording in recordings:
        words, begin, names = texts(recording)
        for name in names:
            if name not in known:
                known[name] = word_vector(name, size)
        counts = np.diff(begin)
        table = np.stack([known[name] for name in names])
        held = csr_matrix((np.ones(len(words), dtype=np.float32), words, begin), shape=(len(counts), len(names)))
        # The mean of the first n places is the same for all texts of n words.
        means = (
            places(int(counts.max(initial=1)), size).cumsum(0) / np.arange(1, int(counts.max(initial=1)) + 1)[:, None]
        )
        found.append(held @ table / np.maximum(counts, 1)[:, None] + means[np.maximum(counts, 1) - 1])
    return np.concatenate(found).astype(np.float32)
