"""Makes `fox.npz` out of the glTF model of a fox in the wheel of gradio, with a small texture.

python build_fox.py gradio-6.31.0-py3-none-any.whl
"""

import base64
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

MODEL = "gradio/media_assets/models3d/Fox.gltf"
TEXTURE = 128  # pixels; the original has 1,024


def data(uri: str) -> bytes:
    """Decode a data URL."""
    return base64.b64decode(uri.partition(",")[2])


def main(wheel: str) -> None:
    """Read the wheel, write the file beside this script."""
    with zipfile.ZipFile(wheel) as archive:
        model = json.loads(archive.read(MODEL))
    content = data(model["buffers"][0]["uri"])

    def read(accessor: int, width: int) -> np.ndarray:
        entry = model["accessors"][accessor]
        view = model["bufferViews"][entry["bufferView"]]
        start = view.get("byteOffset", 0) + entry["byteOffset"]
        return np.frombuffer(content, "<f4", width * entry["count"], start).reshape(-1, width)

    attributes = model["meshes"][0]["primitives"][0]["attributes"]  # no indices: three vertices a face
    corners = np.concatenate([read(attributes["POSITION"], 3), read(attributes["TEXCOORD_0"], 2)], 1)
    vertices, faces = np.unique(corners, axis=0, return_inverse=True)
    texture = Image.open(io.BytesIO(data(model["images"][0]["uri"]))).convert("RGB")
    np.savez_compressed(
        Path(__file__).with_name("fox.npz"),
        positions=vertices[:, :3].astype(np.float32),
        coordinates=vertices[:, 3:].astype(np.float32),
        faces=faces.reshape(-1, 3).astype(np.int32),
        texture=np.asarray(texture.resize((TEXTURE, TEXTURE), Image.Resampling.LANCZOS)),
    )


if __name__ == "__main__":
    main(sys.argv[1])
