"""SSLD: a student agrees with a strong teacher on many unlabelled images, then on those of its own domain.

    loss = (KL(p_t || p_s) + KL(p_s || p_t)) / 2

No label and no temperature takes part. Stage 1 sees all images, the mined pool among them; stage 2, the last part of
the run, only those of the labelled set, at a learning rate of about a hundredth and with a schedule of its own. The
optional third step ("Fix") trains the classifier alone at the resolution of the test: a further run with `head_only`.
The pool is mined by the data: see `mined_images`. With other data stage 2 is on the samples that have a label; what the
label is never enters.
The paper speaks of a JS divergence; its code, and so the default here, has the symmetric KL. `js` is JS proper.
Source: Cui et al., arXiv 2103.05959, section 3, and the authors' code (PaddleClas).
"""

from typing import Any, Literal, Self

from torch import Tensor, nn

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import jensen_shannon, symmetric_kl
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
    arxiv="2103.05959",
    year=2021,
    family="image",
    task="image classification",
    teacher="a strong classifier",
    student="any classifier",
    data="images without labels, and a mined pool",
    code="https://github.com/PaddlePaddle/PaddleClas",
    headline="ImageNet MobileNetV3-large: 75.2 -> 79.0 %; ResNet50-D: 79.1 -> 83.0 %",
    tags=("logits", "label-free", "mining"),
)


class SSLD(Classifier):
    """Label-free distillation in two stages.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        finetune: Part of the run that is stage 2, in [0, 1).
        finetune_lr: Peak learning rate of stage 2 as a multiple of stage 1's.
        divergence: The symmetric KL of the authors' code, or JS proper.
        head_only: Train the classifier alone ("Fix"): give `weights`, and images of the test's size.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and the schedule of each stage.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        finetune: float = 0.08,
        finetune_lr: float = 0.01,
        divergence: Literal["symmetric_kl", "js"] = "symmetric_kl",
        head_only: bool = False,
        weights: str | None = None,
        optim: Optim = Optim(lr=0.4, weight_decay=7e-5, schedule="cosine", warmup=0.014),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        if not 0 <= finetune < 1:
            raise UserError(f"finetune={finetune} is no part of a run: give a number from 0 to less than 1.")
        if head_only and weights is None:
            raise UserError("head_only trains the classifier of a network that is trained already: give its weights.")
        self.finetune, self.finetune_lr, self.head_only = finetune, finetune_lr, head_only
        self.divergence = {"symmetric_kl": symmetric_kl, "js": jensen_shannon}[divergence]

    def make_student(self, spec: dict[str, Any]) -> None:
        """Make the student; with `head_only` all but its classifier is frozen."""
        super().make_student(spec)
        if self.head_only:
            self.student.requires_grad_(False)
            head: nn.Module = self.student.network.get_classifier()  # type: ignore[operator]
            head.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """A frozen body keeps its statistics."""
        super().train(mode)
        if self.head_only and hasattr(self, "student"):
            self.student.eval()
        return self

    def factor(self, progress: float) -> float:
        """Learning rate at `progress` as a multiple of the peak: each stage goes through the schedule."""
        start = 1 - self.finetune
        if progress < start:
            return self.optim.factor(progress / start)
        return self.finetune_lr * self.optim.factor((progress - start) / self.finetune)

    def configure_optimizers(self) -> Any:
        """Optimise what is trained, in two stages."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return self.optim.configure(trained, self.total_steps, factor=self.factor if self.finetune else None)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `divergence`, in stage 2 of the labelled set's images alone; data without any labels have no pool."""
        if self.progress >= 1 - self.finetune and (self.spec or {}).get("labelled", True):
            own = batch["label"] >= 0
            if not own.any():  # distributed training waits for every parameter
                return {"divergence": 0 * self.student(batch["image"]).sum()}
            batch = {key: value[own] for key, value in batch.items()}
        return {"divergence": self.divergence(self.student(batch["image"]), self.teacher(batch))}
