"""The files of expert trajectories, and who makes them."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from kdzoo.cli import main
from kdzoo.console import console
from kdzoo.errors import UserError
from kdzoo.trajectories.buffer import Buffer

IDENTITY = {"data": "d", "rho": 0.01, "clip": (0.5, 1.0)}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(console, "quiet", True)


def buffer(root: Path, **identity) -> Buffer:
    return Buffer(root, {**IDENTITY, **identity}, snapshots=3, parameters=5, about="a network")


def make(expert: int):
    """Snapshots in one array that goes on changing, as the weights of a network do."""
    weights = np.full(5, 10.0 * expert, np.float32)
    for _ in range(3):
        yield weights
        weights += 1


def test_snapshots_come_back_each_as_it_was(tmp_path):
    kept = buffer(tmp_path)
    kept.fill(2, make)
    again = Buffer.at(kept.folder)
    assert again.found() == [0, 1]
    for expert in (0, 1):
        for epoch in range(3):
            np.testing.assert_array_equal(again.snapshot(expert, epoch), np.full(5, 10 * expert + epoch, np.float32))
    np.testing.assert_array_equal(again.read(1, [2, 0])[:, 0], [12, 10])
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_finished_expert_is_never_made_again(tmp_path):
    buffer(tmp_path).fill(2, make)
    made = []

    def counted(expert):
        made.append(expert)
        return make(expert)

    buffer(tmp_path).fill(2, counted)
    assert made == []
    buffer(tmp_path).fill(4, counted)
    assert made == [2, 3]
    buffer(tmp_path).fill(3, counted)
    assert made == [2, 3]


def test_an_interrupted_expert_leaves_nothing(tmp_path):
    def killed(expert):
        yield np.zeros(5, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        buffer(tmp_path).fill(1, killed)
    assert buffer(tmp_path).found() == []
    assert not list(tmp_path.rglob("*.tmp"))
    buffer(tmp_path).fill(1, make)
    assert buffer(tmp_path).found() == [0]


@pytest.mark.parametrize("other", [{"data": "e"}, {"rho": 0.1}, {"clip": ()}, {"alpha": 1.0}])
def test_other_settings_are_another_folder(tmp_path, other):
    assert buffer(tmp_path, **other).folder != buffer(tmp_path).folder


def test_a_buffer_of_other_settings_is_refused(tmp_path):
    kept = buffer(tmp_path)
    kept.fill(1, make)
    other = buffer(tmp_path, rho=0.1)
    kept.folder.rename(other.folder)
    with pytest.raises(UserError, match=f"rho = 0.01, and this run has 0.1: .*kdzoo cache prune {other.folder.name}"):
        other.fill(1, make)


def test_trajectories_of_another_shape_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="is \\(2, 5\\)"):
        buffer(tmp_path).fill(1, lambda expert: iter([np.zeros(5), np.zeros(5)]))


@pytest.mark.parametrize("how", ["bit", "cut", "text", "gone"])
def test_a_damaged_expert_is_refused(tmp_path, how):
    kept = buffer(tmp_path)
    kept.fill(1, make)
    path = kept.path(0)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    {
        "bit": lambda: path.write_bytes(content),
        "cut": lambda: path.write_bytes(content[:-10]),
        "text": lambda: path.write_text("hello"),
        "gone": path.unlink,
    }[how]()
    with pytest.raises(UserError, match=r"expert_0000.safetensors is damaged .*kdzoo cache verify --repair"):
        kept.snapshot(0, 2)
    if how == "bit":
        np.testing.assert_array_equal(kept.snapshot(0, 1), np.ones(5))  # only what is read is looked at
        assert "snapshot 2 has another checksum" in (kept.damaged(0) or "")


def test_a_full_disk_is_said_before(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(UserError, match=r"need 0.00 GB more .* fewer experts"):
        buffer(tmp_path).fill(2, make)


def test_the_cache_knows_buffers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path))
    kept = buffer(tmp_path / "trajectories")
    kept.fill(3, make)
    main(["cache", "list"])
    assert "a network, 3 experts x 3 snapshots" in capsys.readouterr().out
    kept.path(1).write_bytes(b"x" * 100)
    with pytest.raises(SystemExit):
        main(["cache", "verify"])
    assert "expert_0001" in capsys.readouterr().out
    main(["cache", "verify", "--repair"])
    assert kept.found() == [0, 2]
    kept.fill(3, make)
    assert kept.damaged(1) is None
    (kept.folder / "buffer.json").write_text("{")
    with pytest.raises(UserError, match=r"no readable buffer.json"):
        Buffer.at(kept.folder)
    main(["cache", "prune", kept.folder.name])
    assert not kept.folder.exists()


def slowly(expert: int):
    """An expert that takes a while, and tells who made it."""
    for snapshot in make(expert):
        time.sleep(0.05)
        yield snapshot
    with open(os.environ["MADE"], "a") as file:
        file.write(json.dumps([os.getpid(), expert]) + "\n")


def fill_in_a_process(root: Path) -> None:
    console.quiet = True
    buffer(root).fill(6, slowly)


def test_two_processes_share_the_experts(tmp_path, monkeypatch):
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill_in_a_process, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    made = [json.loads(line) for line in (tmp_path / "made").read_text().splitlines()]
    assert sorted(expert for _, expert in made) == list(range(6))  # none twice
    assert len({process for process, _ in made}) == 2
    assert buffer(tmp_path).missing(6) == []


def test_an_expert_whose_maker_was_killed_is_made_by_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    context = multiprocessing.get_context("fork")
    first = context.Process(target=fill_in_a_process, args=(tmp_path,))
    first.start()
    time.sleep(0.1)
    second = context.Process(target=fill_in_a_process, args=(tmp_path,))
    second.start()
    time.sleep(0.1)
    first.kill()
    second.join(60)
    assert second.exitcode == 0
    assert buffer(tmp_path).missing(6) == []
    assert all(buffer(tmp_path).damaged(expert) is None for expert in range(6))
