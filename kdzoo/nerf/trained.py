"""Radiance fields that were trained before, as teachers."""

from pathlib import Path
from typing import Any

from kdzoo.errors import UserError
from kdzoo.export.radiance import read_radiance
from kdzoo.nerf.radiance import Radiance
from kdzoo.spec import check_spec
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.recipe import read_config
from kdzoo.teachers.recipe import trained as train_recipe


def load_teacher(given: list[sources.Teacher], spec: dict[str, Any]) -> tuple[FrozenTeacher, dict[str, Any]]:
    """Load a radiance field as a teacher, and say who it is: `source`, `hash`, `parameters`, `scores`.

    Raises:
        UserError: There are several; or the source is missing or damaged, or is of another bound.
    """
    if len(given) > 1:
        raise UserError("A radiance field has one teacher: fields of several have no mean that is a scene.")
    return sources.freeze(given, [_network(teacher, spec) for teacher in given], inputs=("origin",))


def _network(teacher: sources.Teacher, spec: dict[str, Any]) -> tuple[Radiance, dict[str, float]]:
    if teacher.timm or teacher.store:
        raise UserError("A teacher of a radiance field is a recipe or the folder of a run, and has no store.")
    if sources.untrained() and not (teacher.checkpoint and Path(teacher.checkpoint).exists()):
        model = read_config(teacher.recipe, teacher.set)["model"].get("init_args", {}) if teacher.recipe else {}
        # Without a recipe nobody knows the sizes.
        field, sizes = model.get("field", "hash"), model.get("sizes") or ({} if teacher.recipe else {"table": 14})
        return Radiance(field, sizes, spec["bound"], model.get("steps", 1024), model.get("grid", 128)), {}
    folder = train_recipe(teacher.recipe, teacher.set) if teacher.recipe else Path(str(teacher.checkpoint))
    radiance, config = read_radiance(folder, Radiance)
    if radiance.bound != spec["bound"]:
        raise UserError(
            f"The teacher '{teacher.source}' knows the box of bound {radiance.bound}, but the data have bound "
            f"{spec['bound']}: give data.bound {radiance.bound}."
        )
    check_spec(config["spec"], spec, f"The teacher '{teacher.source}'")
    return radiance, config["scores"]
