"""From D0 to S0, S1 and D1: convert, recover, load (paper, sections Conversion and Recovery).

S1 is S0 trained on the recovery rows with its mask fixed; D1 is D0 trained on exactly the same rows in the
same order, before which it may train once on the rows that the conversion was calibrated on. Every checkpoint
carries the key of the unit that made it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sparsecl.arms import Arm
from sparsecl.base import Base
from sparsecl.code_digest import module_digest
from sparsecl.conversion import ConversionData, calibration_digest, convert
from sparsecl.costs import conversion_costs, cost_tables, training_costs
from sparsecl.experiment import Experiment, MissingInput
from sparsecl.items import has_answers
from sparsecl.masks import Masks, load_masks, masks_digest, save_masks
from sparsecl.modeling import checkpoint_is, checkpoint_manifest, load_checkpoint, save_checkpoint
from sparsecl.records import Stopwatch, sha256_of_json
from sparsecl.scoring import score_rows
from sparsecl.tokenizer import Row
from sparsecl.training import TrainingLog, plan_batches, train

RECOVERY_POINTS = 5  # scorings of the general mixture along the recovery


@dataclass(frozen=True)
class ArmCheckpoint:
    """One arm's model, its masks (None where dense) and the key of the unit that made it."""

    arm: Arm
    model: nn.Module
    masks: Masks | None
    key: str


def mask_name(arm: Arm) -> str:
    """Masks belong to what was converted, not to the lineage: S0 and S1 share theirs."""
    return arm.name.split("-", 1)[1]


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
    save_masks(masks, experiment.write_path("masks", mask_name(arm)))
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
    """Load a finished arm with its masks asserted; MissingInput where it is not there (or not made under `key`)."""
    folder = experiment.tree.replicate(experiment.base) if arm.lineage == "D0" else experiment.folder
    directory = experiment.tree.find(folder, arm.name)
    if directory is None or (key is not None and not checkpoint_is(directory, key)):
        maker = "01_sparsify" if arm.lineage in ("D0", "S0") else "02_recover"
        raise MissingInput(
            f"{experiment.tree.path(folder, arm.name)} is not there yet: run notebook {maker} with replicate = {experiment.replicate!r}, "
            f"or ./run_all.sh --study {experiment.study.name} --only {maker}"
        )
    masks = load_arm_masks(experiment, arm)
    return ArmCheckpoint(arm, load_checkpoint(directory, masks), masks, checkpoint_manifest(directory)["key"])


def load_arm_masks(experiment: Experiment, arm: Arm) -> Masks | None:
    """The masks of a sparse arm, verified; None for a dense one."""
    if not arm.is_sparse:
        return None
    manifest = experiment.find("masks", mask_name(arm) + ".json")
    if manifest is None:
        raise MissingInput(f"{experiment.write_path('masks', mask_name(arm))}.json is not there yet: run notebook 01_sparsify first")
    return load_masks(manifest.with_suffix(""))


def recover_arm(experiment: Experiment, base: Base, arm: Arm) -> ArmCheckpoint:
    """Train S1 from its S0, or D1 from D0, on the recovery rows, or load it where it is finished.

    The checkpoint's manifest keeps the recovery curve and its cost (`recovery_of`).
    """
    start = load_arm(experiment, experiment.study.arm("D0" if arm.lineage == "D1" else "S0-" + mask_name(arm)))
    about = {
        "upstream": start.key,
        "masks": masks_digest(experiment.find("masks", mask_name(arm) + ".json").with_suffix("")) if arm.is_sparse else None,
        "arm": arm.name,
        "settings": experiment.study.digest("seed", "recover", "match_calibration", "sparsify", "dtype"),
        "replicate": experiment.replicate,
    }
    key = sha256_of_json({**about, "code": module_digest("sparsecl.lineage")})
    if checkpoint_is(experiment.find(arm.name), key) and not experiment.recompute:
        return load_arm(experiment, arm, key)
    calibration_costs = _see_calibration(experiment, base, start) if arm.lineage == "D1" and experiment.study.match_calibration else None
    curve, log = _recover(experiment, base, arm, start)
    recovered = ArmCheckpoint(arm, start.model, start.masks, key)
    costs = training_costs(experiment.study, recovered.model, recovered.masks, log)
    about = {"arm": arm.name, "key": key, "curve": curve, "costs": costs, "calibration_costs": calibration_costs}
    save_checkpoint(recovered.model, experiment.write_path(arm.name), recovered.masks, **about)
    return recovered


def _see_calibration(experiment: Experiment, base: Base, start: ArmCheckpoint) -> dict:
    """Train the dense partner once on the calibration rows, as recovery trains; return what that cost.

    A conversion passes these rows forward twice, at two thirds of a training step's cost, so the dense arm gets at least as much.
    """
    study = experiment.study
    rows = calibration_rows(experiment, base)
    settings = study.recover.model_copy(update={"steps": len(rows) // study.recover.batch})
    plan = plan_batches([len(row.ids) for row in rows], settings.steps, settings.batch, experiment.generator("calibration-order"))
    log = train(start.model, rows, plan, settings, description="D1: calibration rows", dtype=study.dtype)
    return training_costs(study, start.model, None, log)


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


def _recover(experiment: Experiment, base: Base, arm: Arm, start: ArmCheckpoint) -> tuple[list[dict], TrainingLog]:
    study = experiment.study
    rows = base.rows(experiment.suite.pretraining, study.tokenizer.max_length)
    plan = plan_batches([len(row.ids) for row in rows], study.recover.steps, study.recover.batch, experiment.generator("recovery"))
    general = base.rows(experiment.suite.general, study.tokenizer.max_length)
    points = {round(study.recover.steps * point / RECOVERY_POINTS) for point in range(1, RECOVERY_POINTS + 1)}
    curve: list[dict] = []

    def measure(step: int) -> None:
        if step == 0 or step in points:
            scores = score_rows(start.model, general, study.scoring_batch)
            curve.append({"step": step, "nll": scores.loss, "score": scores.score if has_answers(experiment.suite.general) else None})

    measure(0)
    log = train(
        start.model, rows, plan, study.recover, description=f"recover {arm.name}", masks=start.masks, dtype=study.dtype, after_step=measure
    )
    return curve, log


def mask_files(experiment: Experiment) -> list[Path]:
    """The mask files of this replicate, for its record; masks loaded from another tree are not this record's."""
    return sorted(experiment.write_path("masks").glob("*.*"))
