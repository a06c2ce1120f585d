"""From D0 to S0, and loading any arm with its masks (paper, section Conversion). Recovery is `sparsecl.recovery`.

Every checkpoint carries the key of the unit that made it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sparsecl.arms import RUNG, Arm
from sparsecl.base import Base
from sparsecl.code_digest import module_digest
from sparsecl.conversion import ConversionData, calibration_digest, convert
from sparsecl.costs import conversion_costs, cost_tables
from sparsecl.experiment import Experiment, MissingInput
from sparsecl.masks import Masks, load_masks, masks_digest, save_masks
from sparsecl.modeling import checkpoint_is, checkpoint_manifest, load_checkpoint, save_checkpoint
from sparsecl.records import Stopwatch, sha256_of_json
from sparsecl.tokenizer import Row
from sparsecl.training import plan_batches


@dataclass(frozen=True)
class ArmCheckpoint:
    """One arm's model, its masks (None where dense), the key of the unit that made it, and masks that confine its updates."""

    arm: Arm
    model: nn.Module
    masks: Masks | None
    key: str
    update_masks: Masks | None = None


def calibration_rows(experiment: Experiment, base: Base) -> list[Row]:
    """Rows of the pretraining mixture that calibrate the conversion, from the stream `calibration`."""
    items = experiment.suite.pretraining
    chosen = experiment.generator("calibration").choice(len(items), experiment.study.sparsify.calibration_rows, replace=False)
    return base.rows(tuple(items[index] for index in chosen), experiment.study.tokenizer.max_length)


def convert_arm(experiment: Experiment, base: Base, arm: Arm) -> ArmCheckpoint:
    """Make S0 of `arm` from D0, or load it where it is finished."""
    rows = calibration_rows(experiment, base)
    about = {"base": base.key, "arm": arm.name, "settings": experiment.study.digest("sparsify"), "calibration": calibration_digest(rows)}
    key = sha256_of_json({**about, "code": module_digest("sparsecl.lineage")})
    directory = experiment.find(arm.name)
    if checkpoint_is(directory, key) and not experiment.recompute:
        return load_arm(experiment, arm, key)
    model = load_checkpoint(experiment.tree.find(experiment.tree.replicate(experiment.base), "D0"))
    watch = Stopwatch()
    data = _conversion_data(experiment, base, rows)
    masks = convert(model, arm, experiment.study.sparsify, data)
    costs = conversion_costs(experiment.study, arm, model, masks, data, watch.seconds())
    save_masks(masks, experiment.write_path("masks", arm.conversion))
    save_checkpoint(model, experiment.write_path(arm.name), masks, arm=arm.name, key=key, costs=costs)
    return ArmCheckpoint(arm, model, masks, key)


def _conversion_data(experiment: Experiment, base: Base, rows: Sequence[Row]) -> ConversionData:
    training = base.rows(experiment.suite.pretraining, experiment.study.tokenizer.max_length)
    lengths = [len(row.ids) for row in training]
    return ConversionData(
        rows=rows,
        tokenizer=base.tokenizer,
        training=training,
        plan=lambda steps, batch: plan_batches(lengths, steps, batch, experiment.generator("mask-learning")),  # repeatable: costs count it
        seed=experiment.seed("conversion"),
    )


def load_arm(experiment: Experiment, arm: Arm, key: str | None = None) -> ArmCheckpoint:
    """Load a finished arm with its masks asserted; MissingInput where it is not there (or not made under `key`).

    `Dg` has no checkpoint of its own: it is D1, with the masks that will confine its updates.
    """
    name = "D1" if arm.masks_updates else arm.name
    folder = experiment.tree.replicate(experiment.base) if arm.lineage == "D0" else experiment.folder
    directory = experiment.tree.find(folder, name)
    if directory is None or (key is not None and not checkpoint_is(directory, key)):
        maker = "01_sparsify" if arm.lineage in ("D0", "S0", RUNG) else "02_recover"
        raise MissingInput(
            f"{experiment.tree.path(folder, name)} is not there yet: run notebook {maker} with replicate = {experiment.replicate!r}, "
            f"or ./run_all.sh --study {experiment.study.name} --only {maker}"
        )
    masks = load_arm_masks(experiment, arm)
    model, made = load_checkpoint(directory, masks if arm.is_sparse else None), checkpoint_manifest(directory)["key"]
    if arm.masks_updates:
        return ArmCheckpoint(arm, model, None, sha256_of_json({"model": made, "updates": made_masks_digest(experiment, arm)}), masks)
    return ArmCheckpoint(arm, model, masks, made)


def load_arm_masks(experiment: Experiment, arm: Arm) -> Masks | None:
    """The masks of a sparse arm, or those that confine the updates of a dense one, verified; None where there are none."""
    if not arm.topology:
        return None
    manifest = experiment.find("masks", arm.conversion + ".json")
    if manifest is None:
        raise MissingInput(f"{experiment.write_path('masks', arm.conversion)}.json is not there yet: run notebook 01_sparsify first")
    return load_masks(manifest.with_suffix(""))


def made_masks_digest(experiment: Experiment, arm: Arm) -> str | None:
    """Digest of an arm's masks; None where it has none."""
    return masks_digest(experiment.find("masks", arm.conversion + ".json").with_suffix("")) if arm.topology else None


def making_of(experiment: Experiment, arm: Arm) -> dict:
    """Costs of a finished conversion or recovery, and the recovery's curve."""
    return checkpoint_manifest(experiment.find(arm.name))


def making_cost_tables(experiment: Experiment, arms: Sequence[Arm], method: str, job: str) -> dict[str, list[dict]]:
    """Rows of cost and timings for the conversions (or recoveries) of these arms, `calibration` apart where D1 had it."""
    tables: dict[str, list[dict]] = {"cost": [], "timings": []}
    for arm in arms:
        making = making_of(experiment, arm)
        for name, costs in ((method, making["costs"]), ("calibration", making.get("calibration_costs"))):
            keys = {"arm": arm.name, "method": name, "seed": experiment.replicate, "job": job}
            found = cost_tables(keys, costs, experiment.device, experiment.study.dtype) if costs else {}
            for table, rows in found.items():
                tables[table] += rows
    return tables


def mask_files(experiment: Experiment) -> list[Path]:
    """The mask files of this replicate, for its record; masks loaded from another tree are not this record's."""
    return sorted(experiment.write_path("masks").glob("*.*"))
