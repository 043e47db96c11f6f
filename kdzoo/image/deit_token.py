"""Distillation token: a transformer learns labels with its class token, the teacher with a second token.

    hard:  loss = (1 - alpha) CE(z_class, y) + alpha CE(z_dist, argmax z_t)
    soft:  loss = (1 - alpha) CE(z_class, y) + alpha T^2 KL(softmax(z_t / T) || softmax(z_dist / T))

At inference the two heads are averaged. With Mixup or CutMix the teacher sees the mixed image.
Source: Touvron et al., arXiv 2012.12877, eq. 2 and 3 (hard, alpha = 1/2). A soft target is there given with T = 3 and
alpha = 0.1.
"""

from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.image.classifier import Classifier
from kdzoo.image.mixing import erase, mix, rand_augment
from kdzoo.losses.logits import kd, soft_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Training data-efficient image transformers and distillation through attention",
    arxiv="2012.12877",
    year=2021,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="a transformer with a distillation token",
    data="images, labelled or not",
    code="https://github.com/facebookresearch/deit",
    headline="ImageNet DeiT-B distilled: 83.4 % (81.8 % without)",
    tags=("logits", "transformer"),
)


class DeiTToken(Classifier):
    """A token for distillation.

    Args:
        student: A timm transformer with a distillation token: `deit_tiny_distilled_patch16_224` ...
        teacher: A recipe's name, a `Teacher`, or several.
        variant: What the distillation token learns: the teacher's choice, or its distribution.
        alpha: Weight of the distillation token's term, in [0, 1].
        temperature: T of `soft`.
        label_smoothing: Share of the label that is spread over all classes.
        rand_augment: Strength of RandAugment, in [0, 1]; 0: off.
        random_erasing: Probability that a rectangle of an image is erased.
        mixup: alpha of Mixup; 0: off.
        cutmix: alpha of CutMix; 0: off.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule: the paper's, for a batch of 1024.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        variant: Literal["hard", "soft"] = "hard",
        alpha: float = 0.5,
        temperature: float = 3.0,
        label_smoothing: float = 0.1,
        rand_augment: float = 0.9,
        random_erasing: float = 0.25,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(name="adamw", lr=1e-3, weight_decay=0.05, schedule="cosine", warmup=1 / 60),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.variant, self.alpha, self.temperature, self.label_smoothing = variant, alpha, temperature, label_smoothing
        self.rand_augment, self.random_erasing, self.mixup, self.cutmix = rand_augment, random_erasing, mixup, cutmix

    def build(self, spec: dict[str, Any]) -> None:
        """Let the student answer with both heads while it is trained."""
        super().build(spec)
        network: Any = self.student.network
        if not hasattr(network, "set_distilled_training"):
            raise UserError(
                f"'{self.architecture}' has no distillation token: take one of timm's `deit_*_distilled_*` networks."
            )
        network.set_distilled_training(True)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` of the class token and `token` of the distillation token."""
        label = batch["label"]
        classes = (self.spec or {})["classes"]
        target = one_hot(label.clamp(min=0), classes).float() * (label >= 0)[:, None]  # zeros: no label
        target = (1 - self.label_smoothing) * target + self.label_smoothing / classes * (label >= 0)[:, None]
        image = rand_augment(batch["image"], self.rand_augment)
        image, target = mix(image, target, self.mixup, self.cutmix)
        image = erase(image, self.random_erasing)
        class_logits, token_logits = self.student(image)  # [B, C] each
        teacher_logits = self.teacher({**batch, "image": image} if self.changes else batch)
        if self.variant == "hard":
            token = cross_entropy(token_logits.float(), teacher_logits.argmax(1))
        else:
            token = kd(token_logits, teacher_logits, self.temperature)
        return {"ce": (1 - self.alpha) * soft_cross_entropy(class_logits, target), "token": self.alpha * token}

    @property
    def changes(self) -> bool:
        """Whether the images are not those of the data module."""
        return any((self.rand_augment, self.random_erasing, self.mixup, self.cutmix))
