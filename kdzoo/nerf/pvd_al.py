"""Progressive volume distillation with active learning: any radiance field teaches any other, without a photograph.

    loss = w_f(t) N(f_s, f_t) + w_sigma N(log sigma_s, log sigma_t) + w_c N(c_s, c_t) + w_rgb N(C_s, C_t)

N is the norm of the difference over the whole batch, not squared. f are the sixteen numbers after the first block of
both fields, log sigma the clipped log-density, c the colour of a point, C that of a ray. Both fields are asked at the
same points, on rays of random cameras, in cells that the teacher's grid says are occupied. Progress of the run decides
which terms are live: until `stage1` the first alone (only the first block runs), until `stage2` the three of points,
then all. w_f falls by a factor 0.995 in each of the 30,000 steps of the published run, from its first step on.

Active learning: of the views of an epoch those with the worst PSNR against the teacher come again, turned a little; of
the rays those with the largest difference; and of the points of a ray only the heaviest count in the first three terms.

What the student takes over from the teacher: the grid, which it never changes, and where `inherit` says so the blocks
that have the same shape (`hash` and `mlp` share head and colour network, `vm` the latter). The position encoder starts
fresh, also between two fields of one kind; the released code would copy it too. A pool collects scores from rendered
steps alone; the released code renders all views of an epoch once more for that. AdamW decays weights in the published
runs by torch's default, 0.01. Published as `pvd` in arXiv 2211.15977 (`active: none`, the stages below); the released
branch of arXiv 2304.04012 sets both stages to 0. Differs from it in that a hard view's score belongs to that view
(`pose_pairing`).
"""

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from kdzoo.card import Card
from kdzoo.console import say
from kdzoo.datamodules.augment import hash32, uniform
from kdzoo.datamodules.cameras import rays
from kdzoo.errors import UserError
from kdzoo.nerf.distances import Norm, distance, heaviest
from kdzoo.nerf.encodings import truncated_exp
from kdzoo.nerf.field_method import JITTER, FieldMethod
from kdzoo.nerf.marching import composite
from kdzoo.nerf.pools import Pairing, PosePool, RayPool
from kdzoo.nerf.radiance import Radiance
from kdzoo.nerf.trained import load_teacher
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Progressive Volume Distillation with Active Learning for Efficient NeRF Architecture Conversion",
    arxiv="2304.04012",
    year=2023,
    family="nerf",
    task="conversion of radiance fields",
    teacher="a radiance field: hash grid, MLP, vector-matrix factors or dense tensors",
    student="any of them",
    data="cameras; photographs only for the test",
    code="megvii-research/AAAI2023-PVD",
    headline="an MLP from a hash grid 10 to 20 times faster than from photographs, 0.8 to 2 dB better (authors' claim)",
    tags=("radiance field", "features", "label-free", "active learning"),
)
PUBLISHED_STEPS = 30_000
PIXEL, AGAIN = 1, 2  # slots of the random numbers
Active = Literal["all", "none", "pose", "ray", "point", "pose+ray", "pose+point", "ray+point"]


class PVDAL(FieldMethod):
    """Distils a radiance field into another.

    A step has `data.batch_size` rays of one random view (and those that come again); the data's photographs are looked
    at in validation and test alone.

    Args:
        teacher: A recipe's name, or a run's folder.
        field: What to make: `hash`, `mlp`, `vm` or `tensors`.
        sizes: The field's, where they differ from the published ones (see `kdzoo.nerf.fields`).
        inherit: Blocks of the teacher's that fit: `train` copies them, `freeze` leaves them as they are, `none`.
        stage1: Progress of the run until which only the first block learns (2,000 of 30,000 steps).
        stage2: Progress until which points alone are compared (5,000 of 30,000 steps).
        feature_weight: w_f at the start.
        feature_decay: Its decay in a step of a run of 30,000; in shorter runs so much faster.
        density_weight, colour_weight, rgb_weight, depth_weight: Of the other terms.
        sparsity: Weight of the L1 norm of the density's factors in `vm`.
        norm: `norm_l2` as published, `norm_l1`, or `mean_l2`.
        active: Which levels of active learning are on: `all`, `none`, or two of three, with a + between.
        poses: Views of an epoch.
        pose_pool, ray_pool: Sizes of the pools.
        hard_share: Share of views and of rays that are hard.
        point_share: Share of a ray's points that counts.
        pose_pairing: `fixed`, or `as_released` (see `kdzoo.nerf.pools`).
        lr: Learning rate of AdamW at the start; networks of `vm` and all of `mlp` learn at a tenth of it.
        lr_end: Learning rate at the end, after a cosine.
        weight_decay: Of AdamW.
        optimizer: Another optimizer; the cosine goes down to the same share of its rate.
        mesh: Cells along each axis of the exported mesh; 0 for none.
        mesh_density: Density of its surface.
        frames: Pictures of the exported turntable; 0 for none.
    """

    teacher: FrozenTeacher

    def __init__(
        self,
        teacher: Teachers,
        field: str = "mlp",
        sizes: dict[str, int] | None = None,
        inherit: Literal["train", "freeze", "none"] = "train",
        stage1: float = 2_000 / PUBLISHED_STEPS,
        stage2: float = 5_000 / PUBLISHED_STEPS,
        feature_weight: float = 2e-3,
        feature_decay: float = 0.995,
        density_weight: float = 2e-3,
        colour_weight: float = 2e-3,
        rgb_weight: float = 1.0,
        depth_weight: float = 0.0,
        sparsity: float = 1e-4,
        norm: Norm = "norm_l2",
        active: Active = "all",
        poses: int = 312,
        pose_pool: int = 100,
        ray_pool: int = 150 * 4096,
        hard_share: float = 0.1,
        point_share: float = 0.3,
        pose_pairing: Pairing = "fixed",
        lr: float = 1e-2,
        lr_end: float = 7e-5,
        weight_decay: float = 0.01,
        optimizer: OptimizerCallable | None = None,
        mesh: int = 256,
        mesh_density: float = 10.0,
        frames: int = 60,
    ) -> None:
        # Steps of a ray and the grid's resolution are the teacher's.
        super().__init__(field, sizes, 1, 1, lr, lr_end, weight_decay, optimizer, mesh, mesh_density, frames)
        if not 0 <= stage1 <= stage2 <= 1 or not 0 <= point_share < 1 or not 0 <= hard_share <= 1 or poses < 1:
            raise UserError(
                f"PVDAL: 0 <= stage1={stage1} <= stage2={stage2} <= 1, point_share={point_share} and hard_share="
                f"{hard_share} in [0, 1) and poses={poses} of 1 or more are needed."
            )
        self.teachers = sources.teachers(teacher)
        self.inherit, self.stage1, self.stage2 = inherit, stage1, stage2
        self.feature_weight, self.feature_decay = feature_weight, feature_decay
        self.density_weight, self.colour_weight, self.rgb_weight = density_weight, colour_weight, rgb_weight
        self.depth_weight, self.sparsity, self.norm = depth_weight, sparsity, norm
        levels = {"pose", "ray", "point"} if active == "all" else set(active.split("+"))
        self.active_points = "point" in levels
        self.poses, self.pose_pool = poses, pose_pool if "pose" in levels else 0
        self.ray_pool = ray_pool if "ray" in levels else 0
        self.hard_share, self.point_share, self.pose_pairing = hard_share, point_share, pose_pairing

    def build(self, spec: dict[str, Any]) -> None:
        """Make the student on the teacher's grid, with the teacher's blocks that fit."""
        self.teacher, self._teacher_summary = load_teacher(self.teachers, spec)
        taught: Radiance = self.teacher.networks[0]
        self.steps, self.grid = taught.steps, taught.grid.resolution
        super().build(spec)
        self.student.grid.load_state_dict(taught.grid.state_dict())
        self.ready.fill_(True)  # the grid stays as it is
        self.inherited = inherit_blocks(self.student, taught) if self.inherit != "none" else []
        if self.inherit == "freeze":
            for name in self.inherited:
                self.student.field.get_submodule(name).requires_grad_(False)
        self.comparable = self.student.field.shared and taught.field.shared
        self.pose_memory = PosePool(self.poses, self.pose_pool, self.hard_share, self.pose_pairing)
        self.ray_memory = RayPool(self.ray_pool)
        if not sources.untrained():
            copied = ", ".join(self.inherited) or "nothing but the grid"
            say("inherit", f"{copied} of the teacher ({taught.arguments['field']} -> {self.field})")

    def prepare(self) -> None:
        """Train the teacher if it is a recipe and not in the cache."""
        sources.prepare(self.teachers)

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches."""
        return self._teacher_summary

    def teacher_radiance(self) -> Radiance | None:
        """The teacher, unless it is a stand-in for tests of shapes."""
        return None if sources.untrained() else self.teacher.networks[0]

    # -------------------------------------------------------------------------------------------------- the terms

    @property
    def stage(self) -> int:
        """1: the first block alone; 2: points; 3: everything. Fields without common numbers have no stage 1."""
        if self.progress < self.stage1 and self.comparable:
            return 1
        return 2 if self.progress < self.stage2 else 3

    @property
    def feature_weight_now(self) -> float:
        """w_f at this step."""
        return self.feature_weight * self.feature_decay ** (PUBLISHED_STEPS * self.progress)

    def rays_of(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The rays of this step: origins, directions and backgrounds [N, 3], jitter [N], slots of the pool.

        The first `len(batch["index"])` rays are of this step's view.
        """
        assert self.prior is not None
        assert self.camera is not None
        index, view, step = batch["index"].cpu(), batch["view"].cpu(), self.trainer.global_step
        pose = self.pose_memory.pose(step, self.prior).cpu()
        pixel = hash32(index, view, PIXEL) % (self.camera.width * self.camera.height)
        found = torch.cat(rays(self.camera, pose, pixel), 1).to(self.device)  # [B, 6]
        background, jitter = batch["background"], uniform(0, index, view, JITTER).to(self.device)
        world = self.trainer.world_size
        slots = self.ray_memory.slots(int(self.hard_share * len(index) * world), step) if self.stage == 3 else index[:0]
        mine = slots[self.trainer.global_rank :: world]
        if len(mine):
            found = torch.cat([found, self.ray_memory.rays[mine.to(self.device)]])
            numbers = torch.arange(self.trainer.global_rank, len(slots), world)
            background = torch.cat([background, background[torch.arange(len(mine)) % len(background)]])
            jitter = torch.cat([jitter, uniform(AGAIN, numbers, step, JITTER).to(self.device)])
        return found[:, :3], found[:, 3:], background, jitter, slots

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the live ones of `feature`, `density`, `colour`, `rgb`, `depth`, `sparsity`."""
        origin, direction, background, jitter, slots = self.rays_of(batch)
        field, taught = self.student.field, self.teacher.networks[0].field
        samples = self.student.march(origin, direction, jitter)  # both fields are asked at these points
        numbers = field.features(samples.x)
        with torch.no_grad():
            true_numbers = taught.features(samples.x)
        stage, terms = self.stage, {}
        if stage == 1:
            return {"feature": self.feature_weight_now * distance(numbers, true_numbers, self.norm)} | self._idle()
        along = direction[samples.ray]
        colour = field.colour(numbers, along)
        with torch.no_grad():
            true_colour = taught.colour(true_numbers, along)
        chosen: Any = slice(None)
        if stage == 3:
            seen = composite(truncated_exp(numbers[:, 0]), colour, samples, background)
            with torch.no_grad():
                true = composite(true_numbers[:, 0].exp(), true_colour, samples, background)
            terms["rgb"] = self.rgb_weight * distance(seen.rgb, true.rgb, self.norm)
            if self.depth_weight:
                terms["depth"] = self.depth_weight * distance(seen.depth, true.depth, self.norm)
            if self.active_points:  # what is heavy to either
                chosen = torch.zeros(len(samples.x), dtype=torch.bool, device=self.device)
                for each in (seen, true):
                    weights = each.weights.detach(), samples.ray, samples.rays
                    chosen |= heaviest(*weights, self.point_share, each.opacity.detach())
            self._remember(seen.rgb.detach(), true.rgb, torch.cat([origin, direction], 1), len(batch["index"]), slots)
        if self.comparable and self.feature_weight:
            terms["feature"] = self.feature_weight_now * distance(numbers[chosen], true_numbers[chosen], self.norm)
        terms["density"] = self.density_weight * distance(numbers[chosen, 0], true_numbers[chosen, 0], self.norm)
        terms["colour"] = self.colour_weight * distance(colour[chosen], true_colour[chosen], self.norm)
        sparsity = field.sparsity()
        if sparsity is not None:
            terms["sparsity"] = self.sparsity * sparsity
        return terms

    def _idle(self) -> dict[str, Tensor]:
        """Touch the second block: every process of a parallel run must see a gradient of it, and none is applied."""
        if self.trainer.world_size == 1:
            return {}
        return {"idle": 0.0 * torch.stack([p.sum() for p in self.student.field.colour_parameters()]).sum()}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave the second block out of steps of the first stage, from weight decay too."""
        if self.stage == 1:
            for parameter in self.student.field.colour_parameters():
                parameter.grad = None

    @torch.no_grad()
    def _remember(self, seen: Tensor, true: Tensor, found: Tensor, own: int, slots: Tensor) -> None:
        """Score the view of this step, and keep its hardest rays; over all processes."""
        if self.pose_pool:
            error = (seen[:own].clamp(0, 1) - true[:own]).square().mean()
            mean = self.trainer.strategy.reduce(error, reduce_op="mean")
            self.pose_memory.record(self.trainer.global_step, -10 * mean.clamp(min=1e-10).log10())
        if self.ray_pool:
            error = torch.cat([found, (seen - true).abs().sum(1, keepdim=True)], 1)  # [N, 7]
            if self.trainer.world_size > 1:
                every: Any = self.all_gather(error)  # [world, N, 7]
                error = every.reshape(-1, 7)
            hard = int(self.hard_share * own * self.trainer.world_size)
            self.ray_memory.put(error[error[:, 6].argsort(descending=True, stable=True)[:hard], :6], slots)


def inherit_blocks(student: Radiance, teacher: Radiance) -> list[str]:
    """Copy the teacher's blocks that have the same name and shapes; return their names."""
    copied = []
    for name in student.field.blocks:
        if name not in teacher.field.blocks:
            continue
        own, given = student.field.get_submodule(name), teacher.field.get_submodule(name)
        shapes = [{key: value.shape for key, value in block.state_dict().items()} for block in (own, given)]
        if shapes[0] == shapes[1]:
            own.load_state_dict(given.state_dict())
            copied.append(name)
    return copied
