"""Fine-tuning: a pre-trained network learns a task, its lower layers more slowly than its upper ones.

    loss = CE(z_s, smoothed y, mixed);   lr(layer l of L) = lr * layer_decay^(L - l)

Samples without a label are left out. The defaults are those of masked autoencoders' distillation for ViT-B (100 epochs
of which 20 warm up; learning rate 5e-4 times batch / 256, here for a batch of 1024). Differences: the head reads what
the network pools by itself, the class token in a ViT, where the papers average the patches; the strength of RandAugment
does not vary from image to image (theirs has a standard deviation of 0.05).
Sources: arXiv 2208.12256, appendix, and arXiv 2111.06377, appendix A.1.
"""

from typing import Any

from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.image.classifier import Classifier
from kdzoo.image.mixing import erase, mix, rand_augment
from kdzoo.optim import Optim
from kdzoo.teachers import sources
from kdzoo.teachers.sources import Teacher

CARD = Card(
    title="Fine-tuning",
    arxiv="2111.06377",
    year=2021,
    family="image",
    task="image classification",
    student="any pre-trained network",
    data="labelled images",
    tags=("baseline", "teacher"),
)


class FineTune(Classifier):
    """Fine-tuning of a pre-trained network, all of it.

    Args:
        start: What is fine-tuned: a recipe's name, or a `Teacher` (a run such as one of `mae` or `dmae`, or timm's).
        layer_decay: Factor of the learning rate from a layer to the one below, in (0, 1].
        drop_path: Probability of leaving the last block's branches out; it falls linearly to 0 at the first.
        rand_augment: Strength of RandAugment, in [0, 1]; 0: off.
        random_erasing: Probability that a rectangle of an image is erased.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        mixup: alpha of Mixup; 0: off.
        cutmix: alpha of CutMix; 0: off.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        start: str | Teacher,
        layer_decay: float = 0.75,
        drop_path: float = 0.15,
        rand_augment: float = 0.9,
        random_erasing: float = 0.25,
        label_smoothing: float = 0.1,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        optim: Optim = Optim(name="adamw", lr=2e-3, weight_decay=0.05, schedule="cosine", warmup=0.2),
    ) -> None:
        super().__init__("", None, None, optim)
        self.start = sources.teachers(start)
        self.layer_decay, self.drop_path = layer_decay, drop_path
        self.rand_augment, self.random_erasing = rand_augment, random_erasing
        self.label_smoothing, self.mixup, self.cutmix = label_smoothing, mixup, cutmix

    def prepare(self) -> None:
        """Train what is fine-tuned, if it is a recipe and not in the cache."""
        sources.prepare(self.start)

    def make_student(self, spec: dict[str, Any]) -> None:
        """Take the pre-trained network, with a new head."""
        self.student, _ = sources.network_of(self.start[0], spec)
        self.architecture = self.student.architecture
        network: Any = self.student.network
        network.reset_classifier(spec["classes"])
        set_drop_path(network, self.drop_path, self.architecture)

    def configure_optimizers(self) -> Any:
        """Optimise every layer at its own rate; biases, norms and positions have no weight decay."""
        network: Any = self.student.network
        spared = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
        groups = param_groups_layer_decay(network, self.optim.weight_decay, spared, layer_decay=self.layer_decay)
        for group in groups:
            group["lr"] = self.optim.lr * group.pop("lr_scale")
        return self.optim.configure(groups, self.total_steps)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`."""
        labelled = batch["label"] >= 0
        if not labelled.any():
            return {"ce": 0 * self.student(batch["image"]).sum()}
        image, label = batch["image"][labelled], batch["label"][labelled]
        network: Any = self.student.network
        target = one_hot(label, network.num_classes).float()  # [B, C]
        image = erase(rand_augment(image, self.rand_augment), self.random_erasing)
        image, target = mix(image, target, self.mixup, self.cutmix)
        logits = self.student(image)  # [B, C]
        return {"ce": cross_entropy(logits, target, label_smoothing=self.label_smoothing)}


def set_drop_path(network: Any, probability: float, name: str) -> None:
    """Leave residual branches of a transformer out at random, the deeper the more often.

    Raises:
        UserError: The network has no such branches.
    """
    if not probability:
        return
    blocks = list(getattr(network, "blocks", []))
    if not blocks or not all(isinstance(getattr(block, "drop_path1", None), nn.Module) for block in blocks):
        raise UserError(f"'{name}' has no transformer blocks whose branches could be dropped: set drop_path to 0.")
    for depth, block in enumerate(blocks):
        rate = probability * depth / max(1, len(blocks) - 1)
        block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
