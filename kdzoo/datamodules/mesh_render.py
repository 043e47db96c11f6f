"""Pictures of triangle meshes: a z-buffer, a sun with shadows and a highlight."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdzoo.datamodules.cameras import Camera

SUN = np.array([0.45, -0.35, 0.82]) / np.linalg.norm([0.45, -0.35, 0.82])
AMBIENT, DIFFUSE, HIGHLIGHT, SHININESS = 0.4, 0.6, 0.35, 24
SHADOW_MAP, BIAS = 512, 0.02
SAMPLES = 2  # along each side of a pixel


@dataclass(frozen=True)
class Mesh:
    """Triangles with a texture.

    Attributes:
        positions: float [V, 3], z upwards.
        normals: float [V, 3], unit vectors.
        faces: int [F, 3].
        coordinates: float [V, 2] in [0, 1], column and row in the texture, from its upper left corner.
        texture: uint8 [H, W, 3].
    """

    positions: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    coordinates: np.ndarray
    texture: np.ndarray

    def colours(self, face: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Colours [N, 3] in [0, 1] at points given by their face [N] and the shares [N, 3] of its corners."""
        found = (self.coordinates[self.faces[face]] * share[..., None]).sum(1)
        height, width = self.texture.shape[:2]
        column, row = (found * [width, height]).astype(int).T
        return self.texture[row.clip(0, height - 1), column.clip(0, width - 1)] / 255


def merged(parts: Sequence[Mesh]) -> Mesh:
    """One mesh of several: their textures lie one above the other."""
    width = max(part.texture.shape[1] for part in parts)
    textures = [part.texture.repeat(width // part.texture.shape[1], 1) for part in parts]  # widths divide each other
    heights = np.array([texture.shape[0] for texture in textures])
    tops, first = heights.cumsum() - heights, np.cumsum([0, *(len(part.positions) for part in parts)])
    coordinates = [
        (part.coordinates * [1, height] + [0, top]) / [1, heights.sum()]
        for part, height, top in zip(parts, heights, tops)
    ]
    return Mesh(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.normals for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, first)]),
        np.concatenate(coordinates),
        np.concatenate(textures),
    )


def smooth_normals(positions: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals [V, 3]: the mean over the faces at a place, weighted by area; vertices at one place share it."""
    corners = positions[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # [F, 3]
    _, place = np.unique(positions.round(5), axis=0, return_inverse=True)
    place = place.reshape(-1)
    total = np.zeros((place.max() + 1, 3))
    np.add.at(total, place[faces].reshape(-1), across.repeat(3, 0))
    found = total[place]
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def rasterise(
    screen: np.ndarray, faces: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find what is nearest in each pixel.

    Args:
        screen: float [V, 3], column, row and distance (positive) of every vertex.
        faces: int [F, 3].
        width: of the picture.
        height: of the picture.

    Returns:
        Pixels that show something, int [N]; the face in each, int [N]; and the shares of its corners [N, 3], with
        perspective.
    """
    corners = screen[faces]  # [F, 3, 3]
    size = np.array([width, height])
    low = np.floor(corners[..., :2].min(1)).astype(int).clip(0, size)
    high = np.ceil(corners[..., :2].max(1)).astype(int).clip(0, size)
    spans = high - low
    counts = spans.prod(1)
    face = np.repeat(np.arange(len(faces)), counts)
    local = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    column, row = low[face, 0] + local % spans[face, 0], low[face, 1] + local // spans[face, 0]
    a, b, c = (corners[:, i, :2][face] for i in range(3))
    point = np.stack([column, row], 1) + 0.5

    def area(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])

    share = np.stack([area(b, c, point), area(c, a, point), area(a, b, point)], 1)
    whole = share.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = share / whole
    inside = (share >= 0).all(1) & (np.abs(whole[:, 0]) > 1e-9)
    face, column, row, share = face[inside], column[inside], row[inside], share[inside]
    inverse = share / corners[face][..., 2]
    nearness = inverse.sum(1)
    order = np.argsort(nearness, kind="stable")  # the nearest is written last
    winner = np.full(width * height, -1)
    winner[(row * width + column)[order]] = order
    pixels = np.flatnonzero(winner >= 0)
    chosen = winner[pixels]
    return pixels, face[chosen], inverse[chosen] / nearness[chosen, None]


def sunlit(mesh: Mesh) -> tuple[np.ndarray, np.ndarray, float]:
    """The shadow map: heights towards the sun [S, S], the frame [3, 3] of the map, and its scale."""
    side = np.cross(SUN, [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(SUN, side), SUN])
    seen = mesh.positions @ frame.T
    scale = SHADOW_MAP / (2.1 * np.abs(seen[:, :2]).max())
    screen = np.concatenate([seen[:, :2] * scale + SHADOW_MAP / 2, 100 - seen[:, 2:]], 1)
    pixels, face, share = rasterise(screen, mesh.faces, SHADOW_MAP, SHADOW_MAP)
    heights = np.full(SHADOW_MAP**2, -np.inf)
    heights[pixels] = (seen[mesh.faces[face], 2] * share).sum(1)
    return heights.reshape(SHADOW_MAP, SHADOW_MAP), frame, scale


def render(mesh: Mesh, camera: Camera, pose: np.ndarray, light: tuple[np.ndarray, np.ndarray, float]) -> np.ndarray:
    """A picture, uint8 [H, W, 4] with straight alpha.

    Args:
        mesh: What is seen.
        camera: By which camera.
        pose: Camera to world, [4, 4].
        light: What `sunlit` says.
    """
    width, height = camera.width * SAMPLES, camera.height * SAMPLES
    local = (mesh.positions - pose[:3, 3]) @ pose[:3, :3]
    depth = -local[:, 2]
    column = SAMPLES * (camera.cx + camera.fx * local[:, 0] / depth)
    row = SAMPLES * (camera.cy - camera.fy * local[:, 1] / depth)
    pixels, face, share = rasterise(np.stack([column, row, depth], 1), mesh.faces, width, height)
    position = (mesh.positions[mesh.faces[face]] * share[..., None]).sum(1)
    normal = (mesh.normals[mesh.faces[face]] * share[..., None]).sum(1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    heights, frame, scale = light
    seen = position @ frame.T
    column, row = ((seen[:, axis] * scale + SHADOW_MAP / 2).astype(int).clip(0, SHADOW_MAP - 1) for axis in (0, 1))
    lit = seen[:, 2] > heights[row, column] - BIAS
    facing = (normal @ SUN).clip(0) * lit
    view = pose[:3, 3] - position
    half = SUN + view / np.linalg.norm(view, axis=1, keepdims=True)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = HIGHLIGHT * (normal * half).sum(1).clip(0) ** SHININESS * (facing > 0)
    colour = mesh.colours(face, share) * (AMBIENT + DIFFUSE * facing)[:, None] + shine[:, None]
    picture = np.zeros((height * width, 4))
    picture[pixels] = np.concatenate([colour.clip(0, 1), np.ones((len(pixels), 1))], 1)
    parts = picture.reshape(camera.height, SAMPLES, camera.width, SAMPLES, 4).mean((1, 3))  # premultiplied
    parts[..., :3] /= np.maximum(parts[..., 3:], 1e-9)
    return (255 * parts).round().astype(np.uint8)


def disc(radius: float, height: float, squares: int, fine: int = 64) -> Mesh:
    """A round floor at z = `height` with a checkered pattern: a mesh of small squares, cut by the circle."""
    axis = np.linspace(-radius, radius, fine + 1)
    x, y = (grid.ravel() for grid in np.meshgrid(axis[:-1], axis[:-1], indexing="ij"))
    step = axis[1] - axis[0]
    kept = np.hypot(x + step / 2, y + step / 2) < radius
    x, y = x[kept], y[kept]
    place = [np.floor((middle + step / 2 + radius) / (2 * radius) * squares) for middle in (x, y)]
    dark = (place[0] + place[1]) % 2  # [N]
    corners = np.array([[0, 0], [step, 0], [step, step], [0, step]])
    flat = (np.stack([x, y], 1)[:, None] + corners).reshape(-1, 2)
    positions = np.concatenate([flat, np.full((len(flat), 1), height)], 1)
    faces = (4 * np.arange(len(x))[:, None, None] + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    coordinates = np.stack([0.25 + 0.5 * dark, np.full_like(dark, 0.5)], 1).repeat(4, 0)
    texture = np.array([[(209, 204, 189), (64, 82, 115)]], np.uint8)
    return Mesh(positions, np.tile([0.0, 0.0, 1.0], (len(positions), 1)), faces, coordinates, texture)
