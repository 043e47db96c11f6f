"""Images and masks in folders: PASCAL VOC, ADE20K, Cityscapes, or any two folders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from kdzoo.datamodules.augment import uniform
from kdzoo.datamodules.image_data import Batch, Samples, as_it_is
from kdzoo.datamodules.image_files import IMAGENET_MEAN, IMAGENET_STD
from kdzoo.datamodules.image_folder import image_files
from kdzoo.datamodules.photographs import read_picture
from kdzoo.datamodules.segmentation_data import IGNORE, SegmentationData
from kdzoo.errors import UserError

VOC = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
CITYSCAPES = {  # name -> the id in the files; the other ids, 0 to 33, are ignored
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
ADE20K = 150  # classes: ids 1 ... 150 in the files, 0 is ignored
UNKNOWN = -1  # in a table of ids: no mask may have it
GROUND = tuple(round(255 * level) for level in IMAGENET_MEAN)  # around an image that is smaller than a crop
CROP = 128  # first slot of the random scales and crops
Layout = Literal["voc", "ade20k", "cityscapes", "folders"]


def id_table(layout: Layout, classes: int) -> np.ndarray:
    """What the ids in a layout's files mean: int64 [256], a class, `IGNORE` or `UNKNOWN`."""
    table = np.full(256, UNKNOWN)
    if layout == "cityscapes":
        table[:34] = IGNORE
        table[list(CITYSCAPES.values())] = np.arange(len(CITYSCAPES))
    elif layout == "ade20k":
        table[0] = IGNORE
        table[1 : classes + 1] = np.arange(classes)
    else:
        table[:classes] = np.arange(classes)
    table[IGNORE] = IGNORE
    return table


def read_mask(path: Path, table: np.ndarray) -> np.ndarray:
    """Read a mask: a picture with one id in each pixel, in grey or as the index of a palette, 8 or 16 bits.

    Args:
        path: the file.
        table: see `id_table`.

    Returns:
        uint8 [H, W]: classes, or `IGNORE`.

    Raises:
        UserError: the file is missing or damaged, has colours and no ids, or an id that no class has.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            ids = np.asarray(picture).astype(np.int64)
    except Exception as error:  # whatever a decoder stumbles over, it is the file's fault
        raise UserError(f"{path} cannot be decoded ({type(error).__name__}: {error}): repair or remove it.") from error
    if mode not in ("L", "P", "1", "I", "I;16", "I;16B", "I;16L"):
        raise UserError(f"{path} has pixels of the kind {mode}, and a mask has one id in each: convert it to grey.")
    known = (ids >= 0) & (ids < len(table))
    classes = np.where(known, table[np.where(known, ids, 0)], UNKNOWN)
    if (classes == UNKNOWN).any():
        wrong, count = int(ids[classes == UNKNOWN][0]), int((table[:-1] >= 0).sum() - (table[:-1] == IGNORE).sum())
        raise UserError(
            f"{path} has the id {wrong}, which none of the {count} classes has: correct the mask, or write {IGNORE} "
            "where pixels are to be ignored."
        )
    return classes.astype(np.uint8)


@dataclass(eq=False)
class MaskedFiles(Samples):
    """Images and masks that are opened when they are asked for: random crops for the training, else whole ones.

    Attributes:
        images: int64 [N], rows of `pairs`.
        pairs: paths of image and mask.
        names: what to call each, without suffix.
        table: see `id_table`.
        size: side of a training crop, in pixels.
        scale: smallest and largest factor that an image is resized by before it is cropped.
        flip: whether to mirror crops.
        seed: seed of the crops.
    """

    pairs: Sequence[tuple[Path, Path]] = ()
    names: Sequence[str] = ()
    table: np.ndarray | None = None
    size: int = 512
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    seed: int = 0

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, 3] and mask uint8 [H, W]."""
        image_path, mask_path = self.pairs[row]
        assert self.table is not None
        image, mask = read_picture(image_path).rgb(), read_mask(mask_path, self.table)
        if image.shape[:2] != mask.shape:
            raise UserError(
                f"{mask_path} is {mask.shape[1]} x {mask.shape[0]} pixels and its image {image_path} "
                f"{image.shape[1]} x {image.shape[0]}: a mask must have the size of its image."
            )
        return image, mask

    def crop(self, image: np.ndarray, mask: np.ndarray, draws: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Resize, pad, crop and mirror image and mask alike; four draws in [0, 1)."""
        factor = self.scale[0] + draws[0] * (self.scale[1] - self.scale[0])
        height, width = (max(1, round(factor * side)) for side in mask.shape)
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        ids = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        top, left = (int(draw * (max(0, side - self.size) + 1)) for draw, side in zip(draws[1:3], (height, width)))
        ground = Image.new("RGB", (self.size, self.size), GROUND)
        nothing = Image.new("L", (self.size, self.size), IGNORE)
        ground.paste(picture, (-left, -top))  # at the top left where it is smaller
        nothing.paste(ids, (-left, -top))
        image, mask = np.asarray(ground), np.asarray(nothing)
        return (image[:, ::-1], mask[:, ::-1]) if self.flip and draws[3] < 0.5 else (image, mask)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of (position, view) pairs, uint8; `problem` says why one cannot be read.

        It is in the batch and not raised, because an error from a worker process loses its one sentence.
        """
        rows, views = torch.tensor(pairs).unbind(1)
        index, numbers = rows + self.first, self.images[rows].tolist()
        draws = uniform(self.seed, index[:, None], views[:, None], CROP + torch.arange(4)).tolist()
        try:
            found = [self.read(number) for number in numbers]
        except UserError as error:
            return {"problem": str(error)}
        if self.training:
            found = [self.crop(*each, draw) for each, draw in zip(found, draws)]
        image, mask = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*found))
        image = image.permute(0, 3, 1, 2).contiguous()
        names = [self.names[number] for number in numbers]
        return {"image": image, "mask": mask, "index": index, "view": views, "name": names}

    def take(self, rows: np.ndarray) -> Self:
        """The samples at `rows`, int64 [n]."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def feed(self, digest: Any) -> None:
        """Feed names and sizes in bytes into a hashlib `digest`: contents are too much to read."""
        for path in (path for row in self.images.tolist() for path in self.pairs[row]):
            digest.update(f"{path.name}\0{path.stat().st_size}\n".encode(errors="surrogateescape"))
        assert self.table is not None
        digest.update(self.table.tobytes())


@dataclass
class ToSegment(Dataset[Batch]):
    """Somebody's pictures, one at a time, without masks: paths, and for each a name without suffix."""

    paths: list[Path]
    names: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, numbers: list[int]) -> Batch:
        """The picture with this one number: `image` uint8 [1, 3, H, W], and `name`."""
        (number,) = numbers
        try:
            image = torch.from_numpy(np.array(read_picture(self.paths[number]).rgb())).permute(2, 0, 1)[None]
        except UserError as error:
            return {"problem": str(error)}
        return {"image": image, "name": [self.names[number]]}


class SegmentationFolder(SegmentationData):
    """Images with masks, in folders. The validation and test parts give whole images, one a batch.

    Layouts, each with the names that the data set comes with:

    - `voc`: `JPEGImages/`, `SegmentationClass/`, and lists of names in `ImageSets/Segmentation/train.txt` and
      `val.txt`. For the 10,582 images of the augmented set give `train: train_aug, masks: SegmentationClassAug`.
    - `ade20k`: `images/training`, `annotations/training`, and the same with `validation`.
    - `cityscapes`: `leftImg8bit/train/CITY/*_leftImg8bit.png`, `gtFine/train/CITY/*_gtFine_labelIds.png`, and `val`.
    - `folders`: `images/train`, `masks/train`, and `val`: a mask has the name of its image and ends in `.png`.

    Args:
        root: folder of the data.
        layout: how they lie there.
        class_names: names of the classes, for `folders`, where a mask's ids are 0, 1, ... in their order and 255 for
            pixels without a class; the other layouts know their own.
        train, test: names of the parts; None for the layout's.
        masks: name of the folder of the masks, for `voc` and `folders`; None for the layout's.
        size: side of a training crop, in pixels.
        scale: smallest and largest factor that an image is resized by before it is cropped.
        flip: random horizontal flips.
        validation: how many images of the training part are held out; 0: no validation part.
        split_seed: seed of that choice.
        batch_size: crops per batch and process.
        views: number of different crops of an image; None: new ones each epoch.
        image: for `kdzoo predict`: the picture to segment, or a folder of pictures; None for the test part.
        num_workers: worker processes per loader.
    """

    def __init__(
        self,
        root: str,
        layout: Layout = "voc",
        class_names: list[str] | None = None,
        train: str | None = None,
        test: str | None = None,
        masks: str | None = None,
        size: int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        validation: int = 0,
        split_seed: int = 0,
        batch_size: int = 16,
        views: int | None = None,
        image: str | None = None,
        num_workers: int = 0,
    ) -> None:
        own = {"voc": VOC, "cityscapes": list(CITYSCAPES), "ade20k": [str(number + 1) for number in range(ADE20K)]}
        if (class_names is None) == (layout == "folders"):
            raise UserError("SegmentationFolder: class_names must be given for layout=folders, and for no other.")
        super().__init__(
            class_names=class_names or own[layout],
            samples=1,
            size=size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            batch_size=batch_size,
            num_workers=num_workers,
            validation=validation,
            split_seed=split_seed,
            flip=flip,
            views=views,
        )
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"SegmentationFolder: scale={scale} must be two rising factors, like (0.5, 2.0).")
        self.root, self.layout, self.scale, self.image = Path(root), layout, scale, image
        long = layout == "ade20k"
        self.parts = train or ("training" if long else "train"), test or ("validation" if long else "val")
        self.masks = masks or {"voc": "SegmentationClass", "folders": "masks"}.get(layout, "")

    def load(self) -> tuple[MaskedFiles, MaskedFiles]:
        """List the files; none is opened."""
        training, test = (self.listed(part) for part in self.parts)
        return training, test

    def listed(self, part: str) -> MaskedFiles:
        """The images of a part, and their masks.

        Raises:
            UserError: a folder, a list or a file is missing.
        """
        find = {"voc": self._voc, "cityscapes": self._cityscapes}.get(self.layout, self._two_folders)
        pairs, names = find(part)
        if not pairs:
            raise UserError(f"The part '{part}' in {self.root} has no images: check root and layout={self.layout}.")
        for path in (path for pair in pairs for path in pair):
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: every image of the part '{part}' needs its mask, and every name its image."
                )
        rows = torch.arange(len(pairs))
        return MaskedFiles(
            images=rows,
            labels=torch.zeros_like(rows),
            pairs=pairs,
            names=names,
            table=id_table(self.layout, len(self.class_names)),
            size=self.image_size[0],
            scale=self.scale,
            flip=self.flip,
            seed=self.augment_seed,
        )

    def _voc(self, part: str) -> tuple[list[tuple[Path, Path]], list[str]]:
        file = self.root / "ImageSets" / "Segmentation" / f"{part}.txt"
        if not file.is_file():
            raise UserError(f"There is no list {file}: root must be the folder that holds ImageSets (VOC2012).")
        names = file.read_text().split()
        images, masks = self.root / "JPEGImages", self.root / self.masks
        return [(images / f"{name}.jpg", masks / f"{name}.png") for name in names], names

    def _cityscapes(self, part: str) -> tuple[list[tuple[Path, Path]], list[str]]:
        top, ending = self._folder("leftImg8bit", part), "_leftImg8bit.png"
        images = [path for path in image_files(top) if path.name.endswith(ending)]
        names = [str(path.relative_to(top)).removesuffix(ending) for path in images]
        masks = self.root / "gtFine" / part
        return [(path, masks / f"{name}_gtFine_labelIds.png") for path, name in zip(images, names)], names

    def _two_folders(self, part: str) -> tuple[list[tuple[Path, Path]], list[str]]:
        top = self._folder("images", part)
        masks = self.root / ("annotations" if self.layout == "ade20k" else self.masks) / part
        images = image_files(top)
        names = [str(path.relative_to(top).with_suffix("")) for path in images]
        return [(path, masks / f"{name}.png") for path, name in zip(images, names)], names

    def _folder(self, *names: str) -> Path:
        folder = self.root.joinpath(*names)
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: check root and layout={self.layout}.")
        return folder

    def _in_order(self, samples: Samples | None) -> DataLoader[Batch]:
        assert samples is not None
        order = self._order(samples, seed=0, shuffle=False, views=1)
        return DataLoader(samples, sampler=order, collate_fn=as_it_is, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The pictures that `image` names, or the test part."""
        if self.image is None:
            return self.test_dataloader()
        path = Path(self.image)
        paths = image_files(path) if path.is_dir() else [path] if path.is_file() else []
        if not paths:
            raise UserError(f"There is no picture at '{path}' (data.image).")
        top = path if path.is_dir() else path.parent
        stems = [str(file.relative_to(top).with_suffix("")) for file in paths]
        names = [stem if stems.count(stem) == 1 else str(file.relative_to(top)) for stem, file in zip(stems, paths)]
        return DataLoader(ToSegment(paths, names), collate_fn=as_it_is, num_workers=self.num_workers)

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """Make images float32 in [0, 1] and masks int64; the training's are cropped and mirrored already.

        Raises:
            UserError: An image or a mask cannot be read, or they do not fit each other.
        """
        if "problem" in batch:
            raise UserError(batch["problem"])
        masks = {"mask": batch["mask"].long()} if "mask" in batch else {}
        return {**batch, "image": batch["image"].float() / 255, **masks}

    def transform(self) -> dict[str, Any]:
        """The arguments that make a view's pixels out of a training sample."""
        return {**super().transform(), "scale": self.scale}
