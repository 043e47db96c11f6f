"""`Distiller`: what all methods of dataset distillation share, from the real images to the judgement and the export."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from kdzoo.console import say
from kdzoo.dataset.augment import NONE
from kdzoo.dataset.evaluation import Evaluation, label_loss
from kdzoo.dataset.judges import Fetch, Judges
from kdzoo.dataset.networks import POOL, Network, make
from kdzoo.dataset.pictures import evolution_figure, set_figure
from kdzoo.dataset.preprocessing import Preprocessing
from kdzoo.dataset.real_images import RealImages
from kdzoo.errors import UserError
from kdzoo.export.synthetic_set import export_synthetic_set
from kdzoo.method import Method, plain
from kdzoo.metrics.robust_scores import ars, lrs
from kdzoo.teachers import sources

Init = Literal["real", "noise"]
SNAPSHOTS = 8  # of the images' evolution
SHOWN = 10  # classes in the pictures


class Distiller(Method):
    """Distils a training set into a few synthetic images per class.

    One step of the Trainer is one outer iteration. The data module's batches are not used: the real images are read
    once, when a fit starts, and stay at hand in `real`. A subclass implements `losses`, whose gradient changes the
    images; or, where an iteration is more than that, `distil_step`.

    Evaluation: fresh networks are trained on the synthetic set alone, see `kdzoo.dataset.evaluation`. Logged are the
    mean `accuracy` of their last states on the test part in percent, `accuracy_std` over the networks, `bytes` of the
    set; on request `accuracy_<architecture>` for each of a pool, and `lrs` and `ars` (`kdzoo.metrics.robust_scores`)
    with the two accuracies that they compare with.

    Args:
        ipc: Synthetic images per class.
        init: Start from random real images of each class (a function of the seed alone) or from standard normal noise.
        lr_img: Learning rate of the pixels.
        momentum_img: Momentum of the pixels' SGD.
        network: Architecture that distils and judges: a key of `kdzoo.dataset.networks.NETWORKS`.
        width, depth: Of a ConvNet; depth None follows the resolution.
        evaluation: How the set is judged.

    Attributes:
        images: Parameter [classes * ipc, C, H, W], class by class, as networks see images.
        labels: int64 [classes * ipc]; a subclass may put probabilities [classes * ipc, classes] in their place.
        learned_lr: The learned rate of training on the set, a scalar; None where it is not learned.
        preprocess: From pixels to what networks see, and back.
        real: The real training images; only in a fit.
    """

    modality = "image"
    images: nn.Parameter
    labels: Tensor
    ready: Tensor
    history: Tensor
    taken: Tensor
    learned_lr: nn.Parameter | None
    real: RealImages

    def __init__(
        self,
        ipc: int,
        init: Init,
        lr_img: float,
        momentum_img: float,
        network: str,
        width: int,
        depth: int | None,
        evaluation: Evaluation,
    ) -> None:
        super().__init__()
        if ipc < 1:
            raise UserError(f"{type(self).__name__}: ipc={ipc} images per class are no data set, give 1 or more.")
        self.automatic_optimization = False
        self.ipc = self.least_per_class = ipc
        self.init, self.lr_img, self.momentum_img = init, lr_img, momentum_img
        self.network, self.width, self.depth = network, width, depth
        self.evaluation = Evaluation(**evaluation) if isinstance(evaluation, dict) else evaluation
        self.provenance: dict[str, Any] = {}

    def build(self, spec: dict[str, Any]) -> None:
        """Make the synthetic set, empty until a fit starts, and what judges it; a subclass adds its own after this."""
        if not spec.get("classes"):
            raise UserError(f"{type(self).__name__} distils labelled images: give it data with classes.")
        classes, shape = spec["classes"], (spec["channels"], *spec["image_size"])
        make(self.network, spec, self.width, self.depth)  # complain about an impossible network now
        self.images = nn.Parameter(torch.zeros(classes * self.ipc, *shape))
        self.learned_lr = None
        self.preprocess = Preprocessing(spec)
        self.register_buffer("labels", torch.arange(classes).repeat_interleave(self.ipc))
        self.register_buffer("ready", torch.tensor(False))  # whether the images have their start
        self.register_buffer("history", torch.zeros(SNAPSHOTS, min(classes, SHOWN), *shape, dtype=torch.uint8))
        self.register_buffer("taken", torch.tensor(0))  # snapshots in `history`
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.judges: Judges | None = None
        self.tested = False

    def summary(self) -> str:
        """Say how many images there are."""
        return f"{len(self.images):,} synthetic images, {self.ipc} per class"

    def configure_optimizers(self) -> Any:
        """SGD on the pixels."""
        return torch.optim.SGD([self.images], lr=self.lr_img, momentum=self.momentum_img)

    # ------------------------------------------------------------------------------------------------- distilling

    def on_fit_start(self) -> None:
        """Read the real images, and give the synthetic ones their start unless a checkpoint did."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.real = RealImages.of(data, dict(self.spec or {}))
        self.real.check(self.ipc)
        digest = data.fingerprint() if hasattr(data, "fingerprint") else ""
        self.provenance = {"data": type(data).__name__, "data_hash": digest, "seed": self.seed}
        self.study()
        if not self.ready:
            self.start()
            self.ready.fill_(True)

    def study(self) -> None:
        """Learn from the real images what is needed, before the synthetic ones have their start."""

    @torch.no_grad()
    def start(self) -> None:
        """Fill `images` before the first iteration."""
        if self.init == "real":
            self.set_images(self.real.choose(self.ipc, self.seed))
        else:
            noise = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(self.seed))
            self.images.copy_(noise)

    @torch.no_grad()
    def set_images(self, rows: Tensor) -> None:
        """Make the synthetic images the real ones at `rows` [classes * ipc], class by class."""
        self.images.copy_(self.preprocess(self.real.pixels(rows, self.images.device)))

    def real_images(self, rows: Tensor) -> Tensor:
        """The real images at `rows` as networks see them, [n, C, H, W], on the device."""
        return self.preprocess(self.real.pixels(rows, self.device))

    def fresh_network(self) -> Network:
        """A new network on the device, with weights from torch's generator, in training mode."""
        assert self.spec is not None
        return make(self.network, self.spec, self.width, self.depth).to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Make one outer iteration, log its terms, and remember the images now and then."""
        self._snapshot(self.progress)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        terms = self.distil_step(batch)
        optimizer.step()  # Lightning counts it: whatever else an iteration does, it is one step of the Trainer
        self.after_step()
        self.terms = {f"train/{name}": term.detach() for name, term in terms.items()}
        self.log_dict(self.terms)
        loss = torch.stack([term.detach() for term in terms.values()]).sum()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def distil_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave the gradient of an iteration's last update in the parameters, and return the loss's terms."""
        terms = self.losses(batch)
        self.manual_backward(torch.stack(list(terms.values())).sum())
        return terms

    def after_step(self) -> None:
        """Do what follows an update, such as an average of the images."""

    def on_train_end(self) -> None:
        """Remember the last state."""
        self._snapshot(1.0)

    @torch.no_grad()
    def _snapshot(self, progress: float) -> None:
        if self.taken < SNAPSHOTS and self.taken <= progress * (SNAPSHOTS - 1):
            first = self.final_images()[:: self.ipc][: self.history.shape[1]]
            self.history[self.taken] = (255 * self.preprocess.inverse(first).clamp(0, 1)).round().to(torch.uint8)
            self.taken += 1

    # ------------------------------------------------------------------------------------------------- the result

    def final_images(self) -> Tensor:
        """The images that are judged and exported, [classes * ipc, C, H, W]; a subclass may give an average."""
        return self.images.detach()

    def final_labels(self) -> Tensor:
        """Their labels: int64 [classes * ipc], or probabilities [classes * ipc, classes]."""
        return self.labels.detach()

    def criterion(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """What networks minimise that train on the set; see `kdzoo.dataset.evaluation.Criterion`."""
        return label_loss(logits, images, labels)

    def on_validation_start(self) -> None:
        """Train networks on the set, unless the fit goes on."""
        if self.evaluation.during_fit or self.trainer.state.fn != "fit":
            self._train_judges()

    def on_test_start(self) -> None:
        """Train networks on the set."""
        self._train_judges()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judge by the validation part."""
        self._judge(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Judge by the test part."""
        self._judge(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._score("test")
        self.tested = True

    def _train_judges(self) -> None:
        assert self.spec is not None
        how = self.evaluation
        architectures = [self.network, *(name for name in POOL if how.pool and name != self.network)]
        if not sources.untrained():
            say("judges", f"{how.networks} fresh networks of {', '.join(architectures)} train on the set")
        images, labels = self.final_images(), self.final_labels()
        lr = how.lr if self.learned_lr is None else float(self.learned_lr.detach())
        self.judges = Judges(self.spec, self.width, self.depth, self.seed, self.device)
        for name in architectures:
            rate = lr if name == self.network else how.lr  # what suits the one network can be far too much for others
            self.judges.train(name, name, rows_of(images, labels), len(images), how, rate, self.criterion)
        if how.robustness:
            self._train_rivals(images, labels, lr)

    def _train_rivals(self, images: Tensor, labels: Tensor, lr: float) -> None:
        """Train networks on what LRS and ARS compare with."""
        assert self.spec is not None
        assert self.judges is not None
        if not hasattr(self, "real"):
            self.real = RealImages.of(self.trainer.datamodule, self.spec)  # type: ignore[attr-defined]
        rows, count = self.real.choose(self.ipc, self.seed), len(images)
        every = self.real.labels.to(self.device)
        fetch = rows_of(self.real_images(rows), every[rows])
        bare = replace(self.evaluation, augmentation=NONE)
        whole = replace(self.evaluation, epochs=self.evaluation.real_epochs)
        hard = labels.argmax(1) if labels.is_floating_point() else labels
        for group, given, size, how, rate, criterion in (
            ("random", fetch, count, self.evaluation, lr, self.criterion),
            ("random plain", fetch, count, bare, lr, self.criterion),
            ("plain", rows_of(images, labels), count, bare, lr, self.criterion),
            ("hard", rows_of(images, hard), count, self.evaluation, lr, label_loss),
            ("all", lambda rows: (self.real_images(rows), every[rows]), len(self.real), whole, whole.lr, label_loss),
        ):
            self.judges.train(group, self.network, given, size, how, rate, criterion)

    def _judge(self, batch: dict[str, Tensor]) -> None:
        if self.judges is not None:
            self.judges.update(self.preprocess(batch["image"]), batch["label"])

    def _score(self, part: str) -> None:
        judges, self.judges = self.judges, None
        if judges is None:  # a validation inside a fit
            return
        scores = {group: judges.percent(group) for group in judges.groups}
        own = scores[self.network]
        self.log(f"{part}/accuracy", own.mean(), prog_bar=part == "val")
        self.log(f"{part}/accuracy_std", own.std() if len(own) > 1 else torch.zeros_like(own[0]))
        for name in POOL if self.evaluation.pool else ():
            self.log(f"{part}/accuracy_{name}", scores[name].mean())
        if self.evaluation.robustness:
            mean = {group: float(values.mean()) for group, values in scores.items()}
            accuracy = mean[self.network]
            self.log(f"{part}/accuracy_random", mean["random"])
            self.log(f"{part}/accuracy_all", mean["all"])
            self.log(f"{part}/lrs", lrs(accuracy, mean["random"], mean["hard"], mean["all"]))
            self.log(f"{part}/ars", ars((accuracy, mean["random"]), (mean["plain"], mean["random plain"])))
        if part == "test":
            tensors = self.final_images(), self.final_labels()
            self.log("test/bytes", float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)))

    def figures(self) -> dict[str, Figure]:
        """Draw the synthetic images, and how they came to be."""
        if not self.tested or self.spec is None:
            return {}
        names = self.spec.get("class_names") or [str(number) for number in range(self.spec["classes"])]
        pixels = self.preprocess.inverse(self.final_images()).cpu()
        figures = {"Synthetic images": set_figure(pixels, names[:SHOWN], self.ipc)}
        if self.taken > 2:  # what is chosen at once does not evolve
            figures["Evolution"] = evolution_figure(self.history[: int(self.taken)].cpu(), names)
        return figures

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the set: see `kdzoo.export.synthetic_set`."""
        spec = dict(self.spec or {})
        facts = {
            "method": type(self).__name__,
            "arguments": plain(dict(self.hparams)),
            **self.provenance,
            "ipc": self.ipc,
            "learning_rate": None if self.learned_lr is None else float(self.learned_lr.detach()),
            "preprocessing": {"mean": spec["mean"], "std": spec["std"]},
            "spec": {key: spec[key] for key in ("classes", "channels", "image_size", "class_names") if key in spec},
            "scores": scores or {},
        }
        images = self.final_images()
        pixels = self.preprocess.inverse(images)
        return export_synthetic_set(images, self.final_labels(), pixels, self.preprocess.tensors(), facts, folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the set comes from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["provenance"] = dict(self.provenance)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know where the set comes from."""
        super().on_load_checkpoint(checkpoint)
        self.provenance = dict(checkpoint.get("provenance", {}))


def rows_of(images: Tensor, labels: Tensor) -> Fetch:
    """What gives the images and labels at some rows."""
    return lambda rows: (images[rows], labels[rows])
