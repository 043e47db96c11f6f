"""`Pretraining`: what masked-autoencoder methods share, from the student and its masks to the probes and the export."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchmetrics import MeanMetric

from kdzoo.console import count
from kdzoo.export.image import export_image_network
from kdzoo.files import whole
from kdzoo.mae.decoder import Decoder
from kdzoo.mae.encoder import check_vit, initialise, normalise, visible_tokens
from kdzoo.mae.masking import count_visible, draw_mask, patchify, take, unpatchify
from kdzoo.mae.reconstruction import reconstruction_figure
from kdzoo.method import Method
from kdzoo.metrics.probes import knn, linear_probe
from kdzoo.optim import Optim
from kdzoo.students.build import build, check_name
from kdzoo.students.network import ImageNetwork

PICTURES = 8  # images in the figure


def pixel_targets(patches: Tensor, norm_pix_loss: bool) -> Tensor:
    """What the decoder has to predict for patches [B, M, P]: their pixels, standardised per patch if asked for."""
    if not norm_pix_loss:
        return patches
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


class Pretraining(Method):
    """Trains a vision transformer to reconstruct hidden patches; a subclass says what else by its `losses`.

    Evaluation: `pixel_loss` on masks that stay the same; after training also the percentages `linear_probe` and `knn`,
    of classifiers of the frozen encoder's features of whole images, fitted to the labelled training part.

    Args:
        student: A vision transformer of timm's, `vit_...`; kdzoo's small ones are among them.
        mask_ratio: Share of the patches that is hidden, in (0, 1).
        norm_pix_loss: Reconstruct pixels that are standardised per patch.
        decoder_width, decoder_depth, decoder_heads: Shape of the decoder.
        weights: Where the encoder starts: a file of weights, or `pretrained` (timm's); None from scratch.
        optim: The optimizer and its schedule.
    """

    modality = "image"
    student: ImageNetwork
    decoder: Decoder
    seen: list[tuple[Tensor, Tensor]]  # features and labels of an evaluation
    pictures: list[Tensor]  # what `figures` draws

    def __init__(
        self,
        student: str,
        mask_ratio: float,
        norm_pix_loss: bool,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        weights: str | None,
        optim: Optim,
    ) -> None:
        super().__init__()
        check_name(student)  # before a teacher is trained in vain
        self.architecture, self.weights = student, weights
        self.mask_ratio, self.norm_pix_loss = mask_ratio, norm_pix_loss
        self.decoder_shape = {"width": decoder_width, "depth": decoder_depth, "heads": decoder_heads}
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim

    def build(self, spec: dict[str, Any]) -> None:
        """Make the student and the decoder; a subclass adds its own modules after this."""
        self.student = build(self.architecture, {**spec, "classes": 0}, self.weights)
        check_vit(self.student, spec)
        if self.weights is None:
            initialise(self.vit)
        if self.vit.pos_embed is not None:
            self.vit.pos_embed.requires_grad_(False)
        self.patch: tuple[int, int] = self.vit.patch_embed.patch_size
        self.grid: tuple[int, int] = self.vit.patch_embed.grid_size
        self.patches = self.grid[0] * self.grid[1]
        self.visible = count_visible(self.patches, self.mask_ratio)
        values = self.patch[0] * self.patch[1] * spec["channels"]
        prefix = self.vit.num_prefix_tokens
        self.decoder = Decoder(self.vit.embed_dim, prefix, self.grid, values, **self.decoder_shape)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        names = ("pixel_loss", "linear_probe", "knn")
        self.scores = nn.ModuleDict(
            {part: nn.ModuleDict({name: MeanMetric() for name in names}) for part in ("val", "test")}
        )
        self._forget()

    @property
    def vit(self) -> Any:
        """The student as timm's `VisionTransformer`."""
        return self.student.network

    def summary(self) -> str:
        """Say the student's name and size, and what is hidden."""
        size = sum(parameter.numel() for parameter in self.student.parameters())
        return f"{self.architecture} ({count(size)} parameters, sees {self.visible} of {self.patches} patches)"

    def configure_optimizers(self) -> Any:
        """Optimise encoder, decoder and what a subclass adds; biases and norms have no weight decay."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        vectors = [parameter for parameter in trained if parameter.ndim <= 1]
        return self.optim.configure([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], self.total_steps)

    # -------------------------------------------------------------------------------------------- the autoencoder

    def mask(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Numbers of the visible patches [B, V] and of the masked ones [B, M]; an evaluation always has the same."""
        seed = self.seed if self.training else 0
        return draw_mask(seed, batch["index"], batch["view"], self.patches, self.visible)

    def encode(self, image: Tensor, visible: Tensor) -> Tensor:
        """Encode the visible patches alone: [B, P + V, D]."""
        return self.vit.norm(self.vit.blocks(visible_tokens(self.student, image, visible)))

    def pixel_loss(self, image: Tensor, latent: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Mean squared error of the masked patches' pixels, a scalar."""
        prediction = self.decoder(latent, visible, masked)  # [B, M, P]
        return mse_loss(prediction.float(), pixel_targets(self.true_patches(image, masked), self.norm_pix_loss))

    def true_patches(self, image: Tensor, masked: Tensor) -> Tensor:
        """The masked patches' normalised pixels: [B, M, P]."""
        return take(patchify(normalise(self.student, image), self.patch), masked)

    # ------------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the pixel loss of the validation part."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the pixel loss of the test part."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return `index` int64 [B] and `features` float32 [B, D] of whole images."""
        return {"index": batch["index"], "features": self.student(batch["image"]).float()}

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Write `features.safetensors`: `index` int64 [N], ascending, and `features` float32 [N, D]."""
        index, features = (torch.cat([batch[key] for batch in predictions]) for key in ("index", "features"))
        order = index.argsort()
        with whole(folder / "features.safetensors") as scratch:
            save_file({"index": index[order].contiguous(), "features": features[order].contiguous()}, scratch)
        return folder / "features.safetensors"

    def on_validation_start(self) -> None:
        """Forget the last evaluation."""
        self._forget()

    def on_test_start(self) -> None:
        """Forget the last evaluation."""
        self._forget()

    def on_validation_epoch_end(self) -> None:
        """Probe the features."""
        self._probe("val")

    def on_test_epoch_end(self) -> None:
        """Probe the features."""
        self._probe("test")

    def _evaluate(self, batch: dict[str, Tensor], part: str) -> None:
        image = batch["image"]
        visible, masked = self.mask(batch)
        latent = self.encode(image, visible)
        self._log(part, "pixel_loss", self.pixel_loss(image, latent, visible, masked), len(image))
        if self._fitting():
            return
        self.seen.append((self.student(image).float(), batch["label"]))
        if not self.pictures:
            few = slice(PICTURES)
            self.pictures = self.reconstruct(image[few], latent[few], visible[few], masked[few])

    def reconstruct(self, image: Tensor, latent: Tensor, visible: Tensor, masked: Tensor) -> list[Tensor]:
        """The images, the same with NaN in the masked places, and with the prediction there: [B, C, H, W] each."""
        prediction = self.decoder(latent, visible, masked).float()  # [B, M, P]
        if self.norm_pix_loss:  # each patch's own mean and deviation are not predicted: they are lent
            true = self.true_patches(image, masked)
            prediction = prediction * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        patches = patchify(normalise(self.student, image), self.patch)  # [B, N, P]
        places = masked[..., None].expand_as(prediction)
        hidden, whole = (
            unpatchify(patches.scatter(1, places, pixels), self.patch, self.grid) * self.student.std + self.student.mean
            for pixels in (torch.full_like(prediction, torch.nan), prediction)
        )
        return [image.cpu(), hidden.cpu(), whole.cpu()]

    def _forget(self) -> None:
        self.seen, self.pictures = [], []

    def _fitting(self) -> bool:
        """Whether this is a validation inside a fit, where a pass over the training part would cost an epoch."""
        return self.trainer.state.fn == "fit"

    def _probe(self, part: str) -> None:
        if self._fitting() or self.spec is None:
            return
        test, label = (torch.cat(parts) for parts in zip(*self.seen))
        train, known = self._training_features()
        if len(known) == 0:
            return
        for name, predict in {"linear_probe": linear_probe, "knn": knn}.items():
            right = (predict(train, known, test, self.spec["classes"]) == label)[label >= 0]
            self._log(part, name, 100 * right.float())

    def _training_features(self) -> tuple[Tensor, Tensor]:
        """Features [N, D] and labels [N] of the training part as it is, without augmentation, as far as labelled."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        replay = hasattr(data, "replay")
        loader = data.replay([(row, 0) for row in range(len(data.train_set))]) if replay else data.train_dataloader()
        features, labels = [], []
        for batch in loader:
            batch = data.on_after_batch_transfer(move_data_to_device(batch, self.device), 0)
            labelled = batch["label"] >= 0
            if labelled.any():
                features.append(self.student(batch["image"][labelled]).float())
                labels.append(batch["label"][labelled])
        if not features:
            return torch.zeros(0, self.vit.embed_dim), torch.zeros(0, dtype=torch.int64)
        return torch.cat(features), torch.cat(labels)

    def _log(self, part: str, name: str, value: Tensor, weight: int = 1) -> None:
        metric = self.scores[part][name]  # type: ignore[index]
        metric.update(value, weight)
        self.log(f"{part}/{name}", metric, prog_bar=part == "val")

    # ---------------------------------------------------------------------------------------------------- results

    def figures(self) -> dict[str, Figure]:
        """Draw reconstructions of the last test."""
        return {"Reconstruction": reconstruction_figure(*self.pictures)} if self.pictures else {}

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the encoder alone, without a head: see `kdzoo.export.image`."""
        return export_image_network(self.student, dict(self.spec or {}), folder, scores)
