"""Provenance graphs as data: parts, features, the embedded recordings, files of one's own, hostile ones."""

import gzip
import hashlib
import json
import re
from math import cos, sin

import numpy as np
import pytest
import torch

from kdzoo.datamodules.provenance import ASSET, Provenance
from kdzoo.datamodules.provenance_logs import EVENTS
from kdzoo.datamodules.provenance_logs import Provenance as LogGraph
from kdzoo.datamodules.provenance_recordings import KINDS, Recording, kind_of, read_recordings, write_recordings
from kdzoo.datamodules.provenance_text import text_features, word_vector
from kdzoo.errors import UserError


def small():
    """A shell that runs a program, which reads one file and writes another, twice."""
    graph = LogGraph()
    shell, tool = graph.node("process", "1", "sh"), graph.node("process", "2", "tool")
    graph.node("process", "3", "idle")
    read, written = graph.node("file", "/etc/a", "/etc/a"), graph.node("file", "/tmp/b", "/tmp/b")
    graph.event(shell, tool, "fork")
    graph.event(read, tool, "read")
    graph.event(tool, written, "write")
    graph.event(tool, written, "write")
    return Recording.of("small", graph, [0, 1, 0, 0, 1])


def test_the_embedded_recordings():
    assert hashlib.sha256(ASSET.read_bytes()).hexdigest()[:6] == "0324ca"
    assert ASSET.stat().st_size < 1_000_000
    found = read_recordings(ASSET)
    assert len({each.title for each in found}) == len(found)
    assert sum(not each.attacked for each in found) >= 60
    attacked = [each for each in found if each.attacked]
    assert len(attacked) >= 10
    for each in attacked:  # an attack is a part of a session
        assert 0 < each.attack.mean() < 0.5
    names = {name for each in found for name in each.names}
    machine = ("/root", "/work", "pyenv", "site-packages", "kdzoo")
    assert not [name for name in names if any(word in name for word in machine)]
    assert not [name for name in names if re.search(r"tmp/tmp\w{8}|/\.git/t\w{6}$", name)]  # nor a random folder
    assert {name.rpartition(":")[0] for name in names if ":" in name and "/" not in name} <= {"127.0.0.1"}


def test_recordings_come_back(tmp_path):
    first = small()
    assert first.names == ["sh", "tool", "/etc/a", "/tmp/b"]  # what has no event is left out
    assert first.events.tolist() == [[0, 1, 3], [2, 1, 0], [1, 3, 1]]  # and the second of two alike
    assert first.attack.tolist() == [0, 1, 0, 1]
    write_recordings(tmp_path / "a.npz", [first, first])
    for again in read_recordings(tmp_path / "a.npz"):
        assert (again.title, again.names) == (first.title, first.names)
        for key in ("types", "events", "attack"):
            assert np.array_equal(getattr(again, key), getattr(first, key))


def test_kinds_of_files():
    paths = [
        "/usr/bin/ls",
        "/usr/lib/a.so",
        "/lib64",
        "/etc/a",
        "/home/user",
        "/dev/shm/a",
        "/dev/null",
        "relative",
        "/x",
    ]
    found = [KINDS[kind_of(1, path)] for path in paths]
    wanted = ["program", "library", "library", "setting", "personal", "temporary", "system", "file", "file"]
    assert found == wanted
    assert (KINDS[kind_of(0, "/usr/bin/ls")], KINDS[kind_of(2, "127.0.0.1:80")]) == ("process", "socket")


def test_features_are_the_formula():
    recording, size = small(), 6
    said = {
        0: ["sh", "fork", "tool"],
        1: ["sh", "fork", "tool", "tool", "read", "/etc/a", "tool", "write", "/tmp/b"],
        2: ["tool", "read", "/etc/a"],
        3: ["tool", "write", "/tmp/b"],
    }
    found = text_features([recording, recording], size)
    assert np.array_equal(found[:4], found[4:])
    for node, words in said.items():
        total = np.zeros(size)
        for place, word in enumerate(words):
            turn = [place / 10000 ** (2 * k / size) for k in range(size // 2)]
            total += word_vector(word, size) + np.array([f(angle) for angle in turn for f in (sin, cos)])
        assert found[node] == pytest.approx(total / len(words), abs=1e-5)


def test_words_that_share_parts_are_alike():
    a, b, c = (word_vector(word, 256) for word in ("/usr/lib/libc.so", "/usr/lib/libm.so", "127.0.0.1:80"))
    assert np.linalg.norm(a) == pytest.approx(16, abs=1e-4)
    assert a @ b > 2 * abs(a @ c)


def test_parts():
    data = Provenance()
    data.setup("fit")
    recordings = read_recordings(ASSET)
    graphs = {part: set(batch["graph"].unique().tolist()) for part, batch in data.parts.items()}
    assert not graphs["train"] & (graphs["val"] | graphs["test"])
    assert not graphs["val"] & graphs["test"]
    assert set.union(*graphs.values()) == set(range(len(recordings)))
    attacked = {number for number, each in enumerate(recordings) if each.attacked}
    assert attacked < graphs["test"]
    again = Provenance()
    again.setup()
    assert again.fingerprint() == data.fingerprint()
    assert data.parts["predict"] is data.parts["test"]
    for part in ("train", "val", "test"):
        batch = data.parts[part]
        assert batch["x"].shape == (len(batch["label"]), 64)
        assert torch.isfinite(batch["x"]).all()
        assert (batch["edges"][:, 0] != batch["edges"][:, 1]).all()
        ends = batch["graph"][batch["edges"]]
        assert torch.equal(ends[:, 0], ends[:, 1])
        forward = {tuple(pair) for pair in batch["edges"].tolist()}
        assert len(forward) == len(batch["edges"])
        assert forward == {pair[::-1] for pair in forward}
        for row in range(0, len(batch["index"]), 997):
            index, graph = int(batch["index"][row]), int(batch["graph"][row])
            place = index - sum(len(each.types) for each in recordings[:graph])
            assert data.names[index] == recordings[graph].names[place]
            assert int(batch["attack"][row]) == recordings[graph].attack[place]
            assert int(batch["label"][row]) == recordings[graph].kinds[place]
    assert not data.parts["train"]["attack"].any()
    assert not data.parts["val"]["attack"].any()
    assert data.spec["classes"] == len(KINDS)


STREAMSPOT = "".join(
    f"{node}\ta\t{node + 1}\tc\tp\t{graph}\n" for graph in [*range(12), 300, 301] for node in range(graph % 3 + 1)
)


def test_streamspot_files(tmp_path, capsys):
    (tmp_path / "edges.tsv").write_text(STREAMSPOT + "broken\n")
    data = Provenance("streamspot", str(tmp_path / "edges.tsv"), test=0.3, validation=0.3)
    data.setup("fit")
    assert "1 lines do not parse and are left out, the first is: broken" in capsys.readouterr().out
    assert "1 lines did not parse" in data.describe()
    test = data.parts["test"]
    assert {data.titles[number] for number in test["graph"][test["attack"] == -1].tolist()} == {"300", "301"}
    assert data.parts["predict"]["graph"].unique().tolist() == list(range(14))
    other = Provenance("streamspot", str(tmp_path / "edges.tsv"), attacks="0-2,7", test=0.3, validation=0.3)
    other.setup()
    own = other.parts["test"]
    assert {other.titles[number] for number in own["graph"][own["attack"] != 0].tolist()} == {"0", "1", "2", "7"}


def cdm(**fields):
    return "\n".join(
        json.dumps({"datum": {f"com.bbn.tc.schema.avro.cdm18.{kind}": record}})
        for kind, record in (
            ("Subject", {"uuid": fields["process"], "cmdLine": {"string": "sshd -D"}}),
            ("FileObject", {"uuid": fields["file"], "baseObject": {"properties": {"map": {"path": "/etc/passwd"}}}}),
            (
                "Event",
                {"type": "EVENT_READ", "subject": {"U": fields["process"]}, "predicateObject": {"U": fields["file"]}},
            ),
        )
    )


def test_cdm_files(tmp_path):
    for number in range(10):
        with gzip.open(tmp_path / f"{number}.json.gz", "wt") as file:
            file.write(cdm(process=f"p{number}", file=f"f{number}"))
    (tmp_path.parent / "malicious.txt").write_text("p3\n\nf4\n")
    data = Provenance("cdm", str(tmp_path), str(tmp_path.parent / "malicious.txt"), validation=0.3, test=0.2)
    data.setup("fit")
    test = data.parts["test"]
    found = zip(test["index"].tolist(), test["graph"].tolist(), test["attack"].tolist())
    assert [(data.names[index], data.titles[graph]) for index, graph, attack in found if attack] == [
        ("sshd -D", "3.json.gz"),
        ("/etc/passwd", "4.json.gz"),
    ]


def test_one_log_can_be_predicted(tmp_path):
    (tmp_path / "log").write_text('7 execve("/bin/sh", ["sh"], 0x7f /* 9 vars */) = 0\n')
    data = Provenance("strace", str(tmp_path / "log"))
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert [data.names[index] for index in batch["index"].tolist()] == ["sh", "/bin/sh"]
    with pytest.raises(UserError, match=r"of 1 graphs none is left for .*: a fit takes several benign graphs"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"source": "elsewhere"}, "give embedded without a path"),
        ({"path": "x"}, "give embedded without a path"),
        ({"source": "cdm"}, "give embedded without a path"),
        ({"validation": 0.5, "test": 0.5}, "shares that leave something for the training"),
        ({"features": 0}, "features=0 1 or more"),
        ({"source": "strace", "path": "nowhere"}, "There is nothing at 'nowhere'"),
        ({"source": "streamspot", "path": "edges", "attacks": "x-3"}, "attacks=x-3 are no numbers of graphs"),
        ({"source": "strace", "path": "edges", "attacks": "nowhere"}, "has no event of the format strace"),
        (
            {"source": "cdm", "path": "good", "attacks": "nowhere"},
            "There is no 'nowhere': attacks of cdm is a text file",
        ),
        ({"source": "cdm", "path": "damaged.gz"}, "'damaged.gz' cannot be read"),
    ],
)
def test_bad_input(arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges").write_text(STREAMSPOT)
    (tmp_path / "good").write_text(cdm(process="p", file="f"))
    (tmp_path / "damaged.gz").write_bytes(b"none")
    with pytest.raises(UserError, match=complaint):
        Provenance(**arguments).setup()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ends": np.array([[0, 9], [1, 0], [0, 1]])}, "names a node"),
        ({"kind": np.array([0, 0, len(EVENTS)])}, "names a node, a type or a kind of event"),
        ({"type": np.array([0, 0, 7, 1])}, "names a node, a type or a kind of event"),
        ({"attack": np.array([0])}, "do not fit each other"),
        ({"titles": np.array([{}], dtype=object)}, "holds no provenance graphs"),
    ],
)
def test_damaged_recordings(change, complaint, tmp_path):
    write_recordings(tmp_path / "good.npz", [small()])
    with np.load(tmp_path / "good.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "bad.npz", **(arrays | change))
    with pytest.raises(UserError, match=complaint):
        read_recordings(tmp_path / "bad.npz")
