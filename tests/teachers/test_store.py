"""The store's files, and what a fit makes of them."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from kdzoo.cli import main
from kdzoo.console import quieten
from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.errors import UserError
from kdzoo.export.image import export_image_network
from kdzoo.image.fitnet import FitNet
from kdzoo.image.kd import KD
from kdzoo.students.build import build
from kdzoo.teachers import sparse
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teacher, teachers
from kdzoo.teachers.store import BLOCK, Store

IDENTITY = {"teacher": "t", "samples": 2 * BLOCK + 10, "dtype": "float32"}


# ------------------------------------------------------------------------------------------------------- the files


def filled(folder: Path, views: int = 2) -> tuple[Store, dict[tuple[str, int], np.ndarray]]:
    """A store with two outputs and random values, and these values."""
    store = Store(folder, IDENTITY, {"logits": (3,), "blocks.1": (2, 2)}, "t on d")
    generator = np.random.default_rng(0)
    samples = IDENTITY["samples"]
    values = {
        (output, view): generator.normal(size=(samples, *store.shapes[output])).astype(np.float32)
        for output, view in store.files(views)
    }
    store.start(views)
    for view, number in store.missing(views):
        rows = store.rows("logits", view).blocks[number]
        store.write(view, number, {output: values[output, view][rows.start : rows.stop] for output in store.shapes})
    store.finish(views)
    return store, values


def test_rows_come_back(tmp_path):
    _, values = filled(tmp_path)
    store = Store.at(next(tmp_path.iterdir()))
    assert store.complete(2)
    assert not store.complete(3)
    store.check(2)
    index, view = np.array([5, 0, 2 * BLOCK + 9, 5]), np.array([1, 0, 1, 0])
    for output in store.shapes:
        expected = np.stack([values[output, v][i] for i, v in zip(index, view)])
        np.testing.assert_array_equal(store.read(output, index, view), expected)
        np.testing.assert_array_equal(store.read(output, index, np.ones(4, int)), values[output, 1][index])
    assert sorted(store.found()) == [("blocks.1", 0), ("blocks.1", 1), ("logits", 0), ("logits", 1)]


def test_every_byte_is_written_once(tmp_path, monkeypatch):
    written = []
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: written.append(len(data)) or pwrite(f, data, at))
    store, _ = filled(tmp_path)
    assert sum(written) == sum(store.rows(*file).path.stat().st_size for file in store.files(2))


def test_a_short_write_goes_on(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda f, data, at: pwrite(f, data[:1000], at))
    store, values = filled(tmp_path)
    store.check(2)
    np.testing.assert_array_equal(store.rows("logits", 1).open(), values["logits", 1])


def test_an_interrupted_filling_goes_on(tmp_path):
    store, values = filled(tmp_path)
    rows = store.rows("logits", 1)
    rows.path.rename(rows.part)
    with rows.part.open("rb+") as file:  # half a block was written when the power failed
        file.seek(BLOCK * rows.row_bytes + 100)
        file.write(b"half")
    assert store.missing(2) == [(1, 1)]
    store.start(2)
    block = rows.blocks[1]
    store.write(1, 1, {output: values[output, 1][block.start : block.stop] for output in store.shapes})
    store.finish(2)
    store.check(2)
    np.testing.assert_array_equal(rows.open(), values["logits", 1])


def damage(path: Path, how: str) -> None:
    """Flip one bit in the middle block of a file, cut it, or lengthen it."""
    content = bytearray(path.read_bytes())
    if how == "a flipped bit":
        content[2 * len(content) // 3] ^= 4
    path.write_bytes({"truncated": content[:-5], "longer": content + b"x"}.get(how, content))


@pytest.mark.parametrize("how", ["a flipped bit", "truncated", "longer"])
def test_damage_is_found_and_repaired(tmp_path, how):
    store, values = filled(tmp_path)
    rows = store.rows("logits", 1)
    damage(rows.path, how)
    fresh = Store.at(store.folder)
    with pytest.raises(UserError, match="logits of view 1") as error:
        fresh.check(2)
    assert "--repair" in str(error.value)
    fresh.repair("logits", 1)
    fresh.start(2)
    missing = fresh.missing(2)
    assert missing == ([(1, 1)] if how == "a flipped bit" else [(1, 0), (1, 1), (1, 2)])
    for view, number in missing:
        block = rows.blocks[number]
        fresh.write(view, number, {output: values[output, view][block.start : block.stop] for output in store.shapes})
    fresh.finish(2)
    fresh.check(2)
    np.testing.assert_array_equal(rows.open(), values["logits", 1])


def test_a_store_that_is_not_what_its_name_says(tmp_path):
    store, _ = filled(tmp_path)
    record = store.folder / "store.json"
    text = record.read_text()
    for changed, said in (
        (text.replace('"teacher": "t"', '"teacher": "u"'), "something else"),
        (text.replace('"format": 1', '"format": 99'), "format 99"),
        (text[:20], "damaged"),
        ("[]", "damaged"),
    ):
        record.write_text(changed)
        with pytest.raises(UserError, match=said):
            Store.at(store.folder)
    record.unlink()
    with pytest.raises(UserError, match="no store"):
        Store.at(store.folder)


def test_values_that_do_not_fit(tmp_path):
    store = Store(tmp_path, IDENTITY | {"dtype": "float16"}, {"logits": (1,)})
    store.start(1)
    with pytest.raises(UserError, match="do not fit into float16"):
        store.write(0, 0, {"logits": np.full((BLOCK, 1), 1e5, np.float32)})


# ----------------------------------------------------------------------------------------------------------- a fit


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> list[str]:
    """Two untrained teachers as export folders."""
    folders = [tmp_path_factory.mktemp("teacher") / str(seed) for seed in range(2)]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        export_image_network(build("cnn_14k", FashionMNIST().spec), FashionMNIST().spec, folder)
    return [str(folder) for folder in folders]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "cache"))
    quieten()
    return tmp_path / "cache"


def small(**options) -> FashionMNIST:
    """1,500 images, so two blocks, in batches that do not divide them."""
    return FashionMNIST(**{"labelled": 1500, "unlabelled": "drop", "batch_size": 90, **options})


def fit(method, data, steps: int = 48, callbacks: tuple[Callback, ...] = ()):
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(method, datamodule=data)
    return {name: tensor.clone() for name, tensor in method.student.state_dict().items()}


def kd(teacher: list[str] | str, **options) -> KD:
    paths = [teacher] if isinstance(teacher, str) else teacher
    return KD(student="cnn_14k", teacher=[Teacher(checkpoint=path, **options) for path in paths])


class Count(Callback):
    """Counts the batches that a teacher's networks see."""

    def __init__(self) -> None:
        self.batches = 0

    def setup(self, trainer, pl_module, stage) -> None:
        original = FrozenTeacher._frozen

        def counted(teacher, batch):
            self.batches += 1
            return original(teacher, batch)

        self.restore = lambda: setattr(FrozenTeacher, "_frozen", original)
        FrozenTeacher._frozen = counted

    def teardown(self, trainer, pl_module, stage) -> None:
        self.restore()


@pytest.mark.parametrize(("workers", "steps"), [(0, 200), (2, 48)])
def test_a_stored_teacher_in_full_precision_is_the_live_one(exported, workers, steps):
    live = fit(kd(exported), small(views=2), steps)
    stored = fit(kd(exported, store="fp32", views=2), small(num_workers=workers), steps)
    assert all(torch.equal(live[name], stored[name]) for name in live)


def test_half_precision_is_close(exported):
    live = fit(kd(exported[0]), small(views=2), steps=10)
    stored = fit(kd(exported[0], store="fp16", views=2), small(), steps=10)
    for name in live:
        torch.testing.assert_close(stored[name], live[name], atol=2e-3, rtol=0)


def test_the_largest_logits_keep_their_probabilities():
    logits = 3 * torch.randn(6, 50, 2, generator=torch.Generator().manual_seed(0))
    values, ids = sparse.top(logits, 4)
    assert values.shape == (6, 5, 2)
    full, kept = logits.softmax(1), sparse.spread(values, ids, 50).softmax(1)
    for row in range(6):
        for place in range(2):
            best = full[row, :, place].argsort(descending=True)
            assert best[:4].tolist() == ids[row, :, place].tolist()
            torch.testing.assert_close(kept[row, best[:4], place], full[row, best[:4], place])
            rest = full[row, best[4:], place].mean().expand(46)
            torch.testing.assert_close(kept[row, best[4:], place], rest)


def test_a_sparse_store(exported, cache):
    """All classes but one are all of them; fewer are fewer bytes."""
    live = fit(kd(exported[0]), small(views=1), steps=10)
    stored = fit(kd(exported[0], store="fp32", views=1, top_k=9), small(), steps=10)
    for name in live:
        torch.testing.assert_close(stored[name], live[name], atol=1e-4, rtol=0)
    count = Count()
    fit(kd(exported[0], store="fp16", views=1, top_k=2), small(), steps=10, callbacks=(count,))
    assert count.batches == 1 + 17
    (folder,) = (path.parent for path in cache.glob("stores/*/store.json") if '"top_k": 2' in path.read_text())
    store = Store.at(folder)
    assert {output: (shape, store.dtype(output)) for output, shape in store.shapes.items()} == {
        "logits.top": ((3,), "float16"),
        "logits.ids": ((2,), "int16"),
    }
    assert sum(path.stat().st_size for path in folder.glob("*.bin")) == 1500 * (3 * 2 + 2 * 2) + 2 * 2 * 4
    count = Count()
    fit(kd(exported[0], store="fp16", views=1, top_k=2), small(), steps=10, callbacks=(count,))
    assert count.batches == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 3}, "top_k is for the logits of a store"),
        ({"top_k": 0, "store": "fp16"}, "top_k is for the logits of a store"),
        ({"top_k": 10, "store": "fp16", "views": 1}, "top_k=10 leaves out none of 10 classes"),
    ],
)
def test_no_sparse_store(exported, options, words):
    with pytest.raises(UserError, match=words):
        fit(kd(exported[0], **options), small(), steps=2)


def test_the_next_student_pays_nothing(exported, cache):
    first, second, more = Count(), Count(), Count()
    fit(kd(exported[0], store="fp16", views=2), small(), callbacks=(first,))
    assert first.batches == 1 + 2 * 17  # the probe, and two views of 1,500 images in batches of 90
    fit(kd(exported[0], store="fp16", views=2), small(flip=True, shift=2), callbacks=(second,))
    assert second.batches == 1
    fit(kd(exported[0], store="fp16", views=3), small(), callbacks=(more,))  # what is there stays
    assert more.batches == 1 + 17
    assert len(list((cache / "stores").glob("*/store.json"))) == 1


def test_no_more_views_than_epochs(exported):
    count = Count()
    fit(kd(exported[0], store="fp16", views=4), small(), steps=20, callbacks=(count,))  # 16 steps in an epoch
    assert count.batches == 1 + 2 * 17


@pytest.mark.parametrize(
    "other",
    [
        {"data": {"shift": 1}},
        {"data": {"labelled": 1400}},
        {"teacher": {"dtype": "bfloat16"}},
        {"teacher": {"store": "fp32"}},
        {"teacher": {"top_k": 3}},
    ],
)
def test_what_differs_has_a_store_of_its_own(exported, cache, other):
    fit(kd(exported[0], store="fp16", views=1), small(), steps=2)
    fit(
        kd(exported[0], **{"store": "fp16", "views": 1, **other.get("teacher", {})}),
        small(**other.get("data", {})),
        steps=2,
    )
    fit(kd(exported[1], store="fp16", views=1), small(), steps=2)
    assert len(list((cache / "stores").glob("*/store.json"))) == 3


def test_features_are_stored_when_asked_for(exported):
    def fitnet(**options):
        teacher = Teacher(checkpoint=exported[0], **options)
        return FitNet(student="cnn_14k", teacher=teacher, student_tap="features", teacher_tap="features")

    live, count = fit(fitnet(), small(views=1)), Count()
    stored = fit(fitnet(store="fp32", views=1, outputs=("logits", "features")), small(), callbacks=(count,))
    assert count.batches == 1 + 17
    assert all(torch.equal(live[name], stored[name]) for name in live)
    count = Count()
    fit(fitnet(store="fp32", views=1), small(), callbacks=(count,))  # logits alone: features are live
    assert count.batches > 1 + 17


def test_validation_has_a_live_teacher(exported):
    class Validated(KD):
        def validation_step(self, batch, batch_idx):
            torch.testing.assert_close(self.teacher(batch), self.teacher.networks[0](batch["image"]))
            self.log("seen", float(len(batch["image"])))

    method = Validated(student="cnn_14k", teacher=Teacher(checkpoint=exported[0], store="fp32", views=1))
    fit(method, small(validation=200), steps=20)


def test_corrupt_images_leave_a_gap(tmp_path, exported):
    from PIL import Image

    from kdzoo.datamodules.image_folder import ImageFolder

    pixels = np.random.default_rng(0).integers(0, 255, (12, 28, 28, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        for part in ("train", "val"):
            file = tmp_path / "photos" / part / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    (tmp_path / "photos" / "train" / "class0" / "4.png").write_bytes(b"no image")
    data = ImageFolder(root=str(tmp_path / "photos"), image_size=28, batch_size=5, corrupt="skip")
    teacher = tmp_path / "teacher"
    export_image_network(build("cnn_14k", data.spec), data.spec, teacher)
    with pytest.warns(UserWarning, match=r"4\.png"):
        fit(kd(str(teacher), store="fp32", views=2), data, steps=6)
    store = Store.at(next((tmp_path / "cache" / "stores").glob("*/")))
    gaps = np.isnan(store.rows("logits", 1).open()).any(axis=1)
    assert gaps.sum() == 1


# ----------------------------------------------------------------------------------------------------- what goes wrong


def folder_of(cache: Path) -> Path:
    return next(path for path in (cache / "stores").iterdir() if path.is_dir())


@pytest.mark.parametrize("how", ["a flipped bit", "truncated"])
def test_a_damaged_store_is_refused_and_repaired_when_asked(exported, cache, capsys, how):
    live = fit(kd(exported[0]), small(views=2), steps=20)
    fit(kd(exported[0], store="fp32", views=2), small(), steps=20)
    damage(folder_of(cache) / "logits-1.bin", how)
    with pytest.raises(UserError, match="logits of view 1"):
        fit(kd(exported[0], store="fp32", views=2), small(), steps=20)
    with pytest.raises(SystemExit):
        main(["cache", "verify"])
    assert "damaged blocks in logits of view 1" in capsys.readouterr().out
    main(["cache", "verify", "--repair"])
    repaired = fit(kd(exported[0], store="fp32", views=2), small(), steps=20)
    assert all(torch.equal(live[name], repaired[name]) for name in live)


def test_a_stale_store_is_refused(exported, cache):
    fit(kd(exported[0], store="fp32", views=1), small(), steps=2)
    store = Store.at(folder_of(cache))
    rows = store.rows("logits", 0)
    values = np.array(rows.open()) + 1
    rows.path.rename(rows.part)
    for number, block in enumerate(rows.blocks):
        rows.write(number, values[block.start : block.stop])
    rows.finish()
    with pytest.raises(UserError, match="not what the teacher says now"):
        fit(kd(exported[0], store="fp32", views=1), small(), steps=2)


def test_a_full_disk_loses_nothing(exported, cache, monkeypatch):
    live = fit(kd(exported[0]), small(views=2), steps=20)
    pwrite, room = os.pwrite, [BLOCK * 40 + 4 + 100]  # one block, and a part of the next

    def limited(file, data, offset):
        if room[0] < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return pwrite(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", limited)
        with pytest.raises(OSError, match=r"logits-0\.part") as error:
            fit(kd(exported[0], store="fp32", views=2), small(), steps=20)
        assert error.value.errno == errno.ENOSPC
    count = Count()
    after = fit(kd(exported[0], store="fp32", views=2), small(), steps=20, callbacks=(count,))
    assert count.batches < 1 + 2 * 17  # the first block is not computed again
    assert all(torch.equal(live[name], after[name]) for name in live)


def test_too_little_room_is_said_before_anything_is_computed(exported, monkeypatch):
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    count = Count()
    with pytest.raises(UserError, match=r"needs 0\.00 GB more .* are free"):
        fit(kd(exported[0], store="fp32", views=2), small(), callbacks=(count,))
    count.restore()
    assert count.batches == 1


def test_a_read_only_disk(exported, monkeypatch):
    mkdir = Path.mkdir

    def refuse(self, *arguments, **options):
        if "stores" in self.parts:
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        mkdir(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(UserError, match=r"cannot be written .*Read-only file system.*KDZOO_CACHE"):
            fit(kd(exported[0], store="fp32", views=1), small(), steps=2)
    fit(kd(exported[0], store="fp32", views=1), small(), steps=2)
    with monkeypatch.context() as patch:  # what is complete can be read there
        patch.setattr(Path, "mkdir", refuse)
        fit(kd(exported[0], store="fp32", views=1), small(), steps=2)


def test_views_are_the_stores(exported):
    with pytest.raises(UserError, match="views=3, and the teacher's store keeps 2"):
        fit(kd(exported[0], store="fp32", views=2), small(views=3), steps=2)


def test_data_that_cannot_be_replayed(exported):
    from kdzoo.datamodules.random_like import RandomLike

    with pytest.raises(UserError, match="RandomLike has no train_set"):
        fit(kd(exported[0], store="fp32"), RandomLike(FashionMNIST().spec), steps=2)


@pytest.mark.parametrize("option", [{"dtype": "bfloat16"}, {"store": "fp16"}, {"views": 2}, {"outputs": ("features",)}])
def test_several_teachers_share_their_options(exported, option):
    name = next(iter(option))
    with pytest.raises(UserError, match=f"share one {name}"):
        teachers([Teacher(checkpoint=exported[0]), Teacher(checkpoint=exported[1], **option)])
    teachers([Teacher(checkpoint=exported[0], **option), Teacher(checkpoint=exported[1], **option)])


# ------------------------------------------------------------------------------------------------------- kdzoo cache


def test_cache_list_and_prune(exported, cache, capsys):
    fit(kd(exported[0], store="fp16", views=2), small(), steps=20)
    name = folder_of(cache).name
    capsys.readouterr()
    main(["cache", "list"])
    listed = capsys.readouterr().out
    assert name in listed
    assert "on FashionMNIST, 2 views, float16" in listed
    main(["cache", "prune", "--unused", "1"])
    assert folder_of(cache).name == name
    with pytest.raises(SystemExit):
        main(["cache", "prune", name[:-1] + "x"])
    assert f"Near: {name}" in capsys.readouterr().err
    main(["cache", "prune", name])
    assert not (cache / "stores" / name).exists()
    main(["cache", "list"])
    assert "0 kept" in capsys.readouterr().out
