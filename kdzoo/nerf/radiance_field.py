"""A radiance field from photographs: the teacher of volume distillation, and the baseline that it has to beat.

    loss = mean |C(r) - c(r)|^2 + sparsity * |density planes and lines|_1      (the second term for `vm` alone)

C is rendered by marching through occupied cells; where photographs have masks the grid starts as their visual hull, and
each ray gets a background of its own random colour, behind truth and rendering alike. The grid is looked at again every
16 steps. Sources: Mildenhall et al., arXiv 2003.08934; Müller et al., 2201.05989; Chen et al., 2203.09517; Yu et al.,
2112.05131; sizes and settings as those of the teachers of arXiv 2304.04012.
"""

from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.nerf.field_method import FieldMethod

CARD = Card(
    title="Radiance fields from photographs",
    year=2022,
    family="nerf",
    task="novel-view synthesis",
    student="hash grid, MLP, vector-matrix factors or dense tensors",
    data="photographs from known cameras",
    tags=("radiance field", "baseline", "teacher"),
)


class RadianceField(FieldMethod):
    """Trains a radiance field on photographs.

    Args:
        field: `hash`, `mlp`, `vm` or `tensors`.
        sizes: The field's, where they differ from the published ones (see `kdzoo.nerf.fields`).
        steps: Steps of a ray along the diagonal of the scene's box.
        grid: Resolution of the occupancy grid.
        refresh: Steps between two looks at the grid.
        sparsity: Weight of the L1 norm of the density's factors in `vm`.
        lr: Learning rate of AdamW at the start; networks of `vm` and all of `mlp` learn at a tenth of it.
        lr_end: Learning rate at the end, after a cosine.
        weight_decay: Of AdamW.
        optimizer: Another optimizer; the cosine goes down to the same share of its rate.
        mesh: Cells along each axis of the exported mesh; 0 for none.
        mesh_density: Density of its surface.
        frames: Pictures of the exported turntable; 0 for none.
    """

    def __init__(
        self,
        field: str = "hash",
        sizes: dict[str, int] | None = None,
        steps: int = 1024,
        grid: int = 128,
        refresh: int = 16,
        sparsity: float = 1e-4,
        lr: float = 1e-2,
        lr_end: float = 7e-5,
        weight_decay: float = 0.01,
        optimizer: OptimizerCallable | None = None,
        mesh: int = 256,
        mesh_density: float = 10.0,
        frames: int = 60,
    ) -> None:
        super().__init__(field, sizes, steps, grid, lr, lr_end, weight_decay, optimizer, mesh, mesh_density, frames)
        if refresh < 1:
            raise UserError(f"RadianceField: refresh={refresh} must be 1 or more steps.")
        self.refresh, self.sparsity = refresh, sparsity

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `mse`, and `sparsity` for a factorised density."""
        direction = normalize(batch["direction"], dim=1)
        pixels, _ = self.student.render(batch["origin"], direction, batch["background"], self.jitter(batch))
        terms = {"mse": mse_loss(pixels.rgb, batch["rgb"])}
        sparsity = self.student.field.sparsity()
        if sparsity is not None:
            terms["sparsity"] = self.sparsity * sparsity
        return terms

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Look at the grid again, every so many steps but not before the first."""
        step = self.trainer.global_step
        if step and step % self.refresh == 0 and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.student.grid.refresh(self.student.field.density, step // self.refresh - 1, seed=0)
