"""Scenes from known cameras: what a file lacks is said in one sentence, and layouts agree about the same cameras."""

import json
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from kdzoo.datamodules.blender_scene import BlenderScene
from kdzoo.datamodules.cameras import SpherePrior, rays
from kdzoo.datamodules.colmap_scene import ColmapScene
from kdzoo.datamodules.llff_scene import LLFFScene
from kdzoo.datamodules.mesh_scene import MeshScene
from kdzoo.datamodules.nsvf_scene import NSVFScene
from kdzoo.errors import UserError

SIZE = 16


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A small copy of the scene that is made on the spot, in Blender's layout."""
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "cache"))
    data = MeshScene(size=SIZE, views=9, test_views=2, batch_size=32, batches=5, validation=2)
    return shutil.copytree(data.folder(), tmp_path / "scene")


def blender(root, **options):
    return BlenderScene(str(root), **{"scale": 1.0, "validation": 0, "batch_size": 64, "batches": 4, **options})


def changed(scene, change):
    file = scene / "transforms_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_the_scene_is_an_ordinary_folder(scene):
    data = blender(scene)
    batch = next(iter(data.train_dataloader()))
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        **dict.fromkeys(("origin", "direction", "rgb", "background"), (64, 3)),
        **dict.fromkeys(("index", "view"), (64,)),
    }
    train = data.cameras().train
    number, pixel = batch["index"] // SIZE**2, batch["index"] % SIZE**2
    pixels = train.images.view(9, -1, 4)[number, pixel].float() / 255
    expected = pixels[:, :3] * pixels[:, 3:] + batch["background"] * (1 - pixels[:, 3:])
    torch.testing.assert_close(batch["rgb"], expected)
    for i in (0, 63):
        origin, direction = rays(train.camera(0), train.poses[number[i]], pixel[i : i + 1])
        torch.testing.assert_close(batch["direction"][i], direction[0])
        torch.testing.assert_close(batch["origin"][i], origin[0])
    view = next(iter(data.test_dataloader()))
    assert (view["height"], len(view["rgb"])) == (SIZE, SIZE**2)
    assert float(view["rgb"][0, 0]) == 1  # a corner is the white background
    assert data.fingerprint() == blender(scene).fingerprint() != blender(scene, width=8).fingerprint()
    assert isinstance(data.cameras().prior, SpherePrior)


def test_two_ranks_share_out_a_batch(scene):
    data = blender(scene)
    data.setup()
    from kdzoo.datamodules.posed_images import RayBatches

    whole, *parts = (
        RayBatches(data.cameras().train, 4, 64, rank, world, 0, True)[(2, 1)]
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    for key, value in whole.items():
        assert torch.equal(value[0::2], parts[0][key])
        assert torch.equal(value[1::2], parts[1][key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["frames"][1].update(file_path="./train/gone"), "There is no image .*gone.png"),
        (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(0, 7.0), "is not rigid"),
        (lambda c: c.pop("camera_angle_x"), "has no intrinsics: add camera_angle_x"),
        (lambda c: c.update(k1=0.1), "lens distortion .k1."),
        (lambda c: c.pop("frames"), "is no file of cameras"),
        (lambda c: c.update(frames=[]), "is no file of cameras"),
        (lambda c: c.update(camera_angle_x=0), r"camera_angle_x=0: it must lie between 0 and pi"),
        (lambda c: c.update(fl_x=0, w=SIZE, h=SIZE), r"focal lengths of 0 and 0 pixels for 16 x 16"),
    ],
)
def test_bad_files_of_cameras(scene, change, message):
    changed(scene, change)
    with pytest.raises(UserError, match=message):
        blender(scene).setup()


def test_bad_images_and_boxes(scene, capsys):
    with pytest.raises(UserError, match=r"reaches out of the box: .* bound=0\.\d+ would fit"):
        blender(scene, bound=0.3).setup()
    Image.new("RGBA", (SIZE, 2 * SIZE)).save(scene / "train" / "r_3.png")
    with pytest.raises(UserError, match=r"r_3.png is 16 x 32 pixels, and its camera has 16 x 16"):
        blender(scene).setup()
    (scene / "train" / "r_3.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be decoded"):
        blender(scene).setup()
    for file in scene.glob("*/*.png"):
        Image.new("RGB", (SIZE, SIZE)).save(file)
    data = blender(scene)
    data.setup()
    assert "no transparency: no masks, and a white background" in capsys.readouterr().out
    assert all(mask is None for _, _, mask in data.masked())
    assert next(iter(data.train_dataloader()))["background"].eq(1).all()


def write_colmap(folder, train, kind):
    """The training views as COLMAP would write them, as text or in its binary form."""
    model, camera = folder / "sparse" / "0", train.camera(0)
    for each in (folder / "images", model):
        each.mkdir(parents=True)
    inner, points = (camera.fx, camera.fy, camera.cx, camera.cy), [(-1.0, -1.0, -1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    frames = []
    for number, (path, pose) in enumerate(zip(train.paths, train.poses.double().numpy())):
        shutil.copy(path, folder / "images" / f"{number}.png")
        world = np.linalg.inv(pose @ np.diag([1.0, -1, -1, 1]))
        x, y, z, w = Rotation.from_matrix(world[:3, :3]).as_quat()
        frames.append((number + 1, (w, x, y, z, *world[:3, 3]), f"{number}.png"))
    if kind == "text":
        words = " ".join(map(str, inner))
        (model / "cameras.txt").write_text(f"# comment\n1 PINHOLE {SIZE} {SIZE} {words}\n")
        lines = [f"{number} {' '.join(map(str, pose))} 1 {name}\n\n" for number, pose, name in frames]
        (model / "images.txt").write_text("".join(lines))
        lines = [f"{i} {' '.join(map(str, point))} 0 0 0 0\n" for i, point in enumerate(points)]
        (model / "points3D.txt").write_text("".join(lines))
        return
    # Little-endian; each image ends with its 2D points (x, y, number), each point with its track (image, 2D point).
    (model / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 1, SIZE, SIZE, *inner))
    content = struct.pack("<Q", len(frames))
    for number, pose, name in frames:
        seen = number % 3
        content += struct.pack("<I7dI", number, *pose, 1) + name.encode() + b"\0" + struct.pack("<Q", seen)
        content += seen * struct.pack("<2dq", 1.5, 2.5, -1)
    (model / "images.bin").write_bytes(content)
    content = struct.pack("<Q", len(points))
    for number, point in enumerate(points):
        content += struct.pack("<Q3d3Bd", number, *point, 9, 9, 9, 0.5) + struct.pack("<Q", number)
        content += number * struct.pack("<2I", 1, 2)
    (model / "points3D.bin").write_bytes(content)


def test_other_layouts_agree_with_blenders(scene, tmp_path):
    """The training views of one scene, written as COLMAP (text and binary) and NSVF would: the same rays."""
    reference = blender(scene)
    reference.setup()
    train = reference.cameras().train
    camera, flip = train.camera(0), np.diag([1.0, -1, -1, 1])
    colmap, binary, nsvf = tmp_path / "colmap", tmp_path / "binary", tmp_path / "nsvf"
    write_colmap(colmap, train, "text")
    write_colmap(binary, train, "binary")
    for folder in (nsvf / "rgb", nsvf / "pose"):
        folder.mkdir(parents=True)
    for number, (path, pose) in enumerate(zip(train.paths, train.poses.double().numpy())):
        name = f"{int(number == 8)}_{number}"
        shutil.copy(path, nsvf / "rgb" / f"{name}.png")
        np.savetxt(nsvf / "pose" / f"{name}.txt", pose @ flip)
    (nsvf / "bbox.txt").write_text("-1 -1 -1 1 1 1 0.1\n")
    np.savetxt(
        nsvf / "intrinsics.txt",
        [[camera.fx, 0, camera.cx, 0], [0, camera.fy, camera.cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    as_colmap = [ColmapScene(str(folder), scale=1.0, bound=1.1, validation=0) for folder in (colmap, binary)]
    for other in (*as_colmap, NSVFScene(str(nsvf), validation=0)):
        other.setup()
        found = other.cameras()
        for views in (found.train, found.test):
            for path, pose in zip(views.paths, views.poses):
                number = int(path.stem.rpartition("_")[2])
                torch.testing.assert_close(pose, train.poses[number], atol=1e-4, rtol=1e-4)
            assert views.camera(0).fx == pytest.approx(camera.fx)
        assert found.prior.radius[0] == pytest.approx(3, abs=0.01)
    with pytest.raises(UserError, match=r"reaches out of the box: .* would fit"):
        ColmapScene(str(colmap), scale=1.0, bound=0.5).setup()
    (nsvf / "intrinsics.txt").unlink()
    with pytest.raises(UserError, match=r"There is no .*intrinsics.txt"):
        NSVFScene(str(nsvf)).setup()
    (nsvf / "bbox.txt").write_text("1 1 1 -1 -1 -1\n")
    with pytest.raises(UserError, match=r"The box of .*bbox.txt is empty"):
        NSVFScene(str(nsvf)).setup()
    shutil.rmtree(nsvf / "rgb")
    (nsvf / "rgb").mkdir()
    with pytest.raises(UserError, match="has no images"):
        NSVFScene(str(nsvf)).setup()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("images", lambda content: content[:-9], "images.bin is no part of COLMAP's model .* make it again"),
        ("images", lambda content: content[:30], "images.bin is no part of COLMAP's model"),
        ("images", lambda content: struct.pack("<Q", 0), "has no points or no images"),
        ("images", lambda content: content.replace(b"3.png", b"x.png"), "There is no image .*x.png"),
        ("cameras", lambda content: content[:-1], "cameras.bin is no part of COLMAP's model"),
        (
            "cameras",
            lambda content: struct.pack("<QiiQQ4d", 1, 7, 1, 9, 9, 1, 1, 1, 1),
            "images of camera 1 and no such",
        ),
        (
            "cameras",
            lambda content: struct.pack("<QiiQQ4d", 1, 1, 1, SIZE, SIZE, 0, 9, 8, 8),
            "focal lengths of 0 and 9",
        ),
        ("cameras", lambda content: struct.pack("<QiiQQ8d", 1, 1, 4, 9, 9, *[0.1] * 8), "lens distortion: undistort"),
        ("cameras", lambda content: struct.pack("<QiiQQ4d", 1, 1, 6, 9, 9, 1, 1, 1, 1), "lens distortion: undistort"),
        ("points3D", lambda content: struct.pack("<Q", 0), "has no points or no images"),
        ("points3D", lambda content: struct.pack("<QQ3d3BdQ", 1, 0, 1, 1, 1, 9, 9, 9, 0, 0), "have no extent"),
        ("points3D", None, "There is no points3D.bin or points3D.txt"),
    ],
)
def test_damaged_models_of_colmap(scene, tmp_path, file, change, message):
    reference = blender(scene)
    reference.setup()
    write_colmap(tmp_path / "colmap", reference.cameras().train, "binary")
    path = tmp_path / "colmap" / "sparse" / "0" / f"{file}.bin"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        ColmapScene(str(tmp_path / "colmap"), validation=0).setup()


def test_forward_facing_photographs_fill_the_box(tmp_path):
    (tmp_path / "images_4").mkdir()
    rows = []
    for number in range(10):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "images_4" / f"{number:02d}.png")
        matrix = np.zeros((3, 5))
        # The axes of the file are down, right, back: a camera that looks down -z with y up.
        matrix[:, 0], matrix[:, 1], matrix[:, 2] = (0, -1, 0), (1, 0, 0), (0, 0, 1)
        matrix[:, 3], matrix[:, 4] = (0.1 * number, 0, 5), (40, 80, 60)
        rows.append([*matrix.ravel(), 2.0, 10.0])
    np.save(tmp_path / "poses_bounds.npy", rows)
    data = LLFFScene(str(tmp_path), validation=0)
    data.setup()
    found = data.cameras()
    assert [path.stem for path in found.test.paths] == ["00", "08"]
    assert found.train.camera(0).fx == pytest.approx(15)  # shrunk by four
    torch.testing.assert_close(found.train.poses[:, :3, :3], torch.eye(3).expand(8, 3, 3))
    depth = found.train.poses[:, 2, 3] - 1  # to the front of the box
    assert torch.allclose(depth, depth[0])
    scale = 2 / (10 - 1.5)
    assert float(depth[0]) == pytest.approx(1.5 * scale)
    np.save(tmp_path / "poses_bounds.npy", rows[:9])
    with pytest.raises(UserError, match=r"9 poses, and .* 10 images"):
        LLFFScene(str(tmp_path)).setup()
