"""Scenes from known cameras: what a file lacks is said in one sentence, and layouts agree about the same cameras."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

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


def test_other_layouts_agree_with_blenders(scene, tmp_path):
    """The training views of one scene, written as COLMAP and NSVF would: the same rays."""
    reference = blender(scene)
    reference.setup()
    train = reference.cameras().train
    camera, flip = train.camera(0), np.diag([1.0, -1, -1, 1])
    colmap, nsvf = tmp_path / "colmap", tmp_path / "nsvf"
    for folder in (colmap / "images", colmap / "sparse" / "0", nsvf / "rgb", nsvf / "pose"):
        folder.mkdir(parents=True)
    lines = []
    for number, (path, pose) in enumerate(zip(train.paths, train.poses.double().numpy())):
        shutil.copy(path, colmap / "images" / f"{number}.png")
        world = np.linalg.inv(pose @ flip)
        x, y, z, w = (
            __import__("scipy.spatial.transform", fromlist=["Rotation"]).Rotation.from_matrix(world[:3, :3]).as_quat()
        )
        lines.append(f"{number + 1} {w} {x} {y} {z} {' '.join(map(str, world[:3, 3]))} 1 {number}.png\n\n")
        name = f"{int(number == 8)}_{number}"
        shutil.copy(path, nsvf / "rgb" / f"{name}.png")
        np.savetxt(nsvf / "pose" / f"{name}.txt", pose @ flip)
    inner = f"{camera.fx} {camera.fy} {camera.cx} {camera.cy}"
    (colmap / "sparse" / "0" / "cameras.txt").write_text(f"# comment\n1 PINHOLE {SIZE} {SIZE} {inner}\n")
    (colmap / "sparse" / "0" / "images.txt").write_text("".join(lines))
    (colmap / "sparse" / "0" / "points3D.txt").write_text("1 -1 -1 -1 0 0 0 0\n2 0 0 0 0 0 0 0\n3 1 1 1 0 0 0 0\n")
    (nsvf / "bbox.txt").write_text("-1 -1 -1 1 1 1 0.1\n")
    np.savetxt(
        nsvf / "intrinsics.txt",
        [[camera.fx, 0, camera.cx, 0], [0, camera.fy, camera.cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    for other in (ColmapScene(str(colmap), scale=1.0, bound=1.1, validation=0), NSVFScene(str(nsvf), validation=0)):
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
