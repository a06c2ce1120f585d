"""The recovery budget: S1, D1 and the controls on the same rows (paper, sections Recovery and Controls).

S1 is S0 trained on the recovery rows with its mask fixed; D1 is D0 trained on exactly the same rows in the same
order, before which it may train once on the rows that the conversion was calibrated on. `Dnz` and `Dcut` are narrower
dense models with as many parameters as S1 has non-zeros, one pretrained like D0, one cut from it; `Df` and `Sf` run as
many steps as equal theoretical FLOPs allow. Every checkpoint carries the key of the unit that made it.
"""

from dataclasses import replace

from sparsecl.arms import Arm
from sparsecl.base import Base, pretrain
from sparsecl.code_digest import module_digest
from sparsecl.costs import cost_tables, training_costs
from sparsecl.dense_cut import cut_to_shape
from sparsecl.experiment import Experiment
from sparsecl.items import has_answers
from sparsecl.lineage import ArmCheckpoint, calibration_rows, load_arm, made_masks_digest
from sparsecl.matched_flops import matched_steps, recovery_consumption
from sparsecl.modeling import checkpoint_is, checkpoint_manifest, save_checkpoint
from sparsecl.records import sha256_of_json
from sparsecl.scoring import score_rows
from sparsecl.settings import Optimisation
from sparsecl.training import TrainingLog, plan_batches, train

NARROW = ("Dnz", "Dcut")  # dense models of another shape, which are made before they recover
RECOVERED = ("D1", "S1", *NARROW, "Df", "Sf")  # lineages that notebook 02 trains
RECOVERY_POINTS = 5  # scorings of the general mixture along the recovery


def start_of(experiment: Experiment, arm: Arm) -> ArmCheckpoint:
    """What an arm's recovery starts from: D0, the arm's S0, or a narrow model made for it."""
    if arm.lineage in NARROW:
        return load_arm(experiment, replace(arm, name=start_name(arm)))
    return load_arm(experiment, experiment.study.arm(f"S0-{arm.conversion}" if arm.is_sparse else "D0"))


def start_name(arm: Arm) -> str:
    """The checkpoint of a narrow arm before recovery."""
    return f"{arm.name}-start"


def make_narrow(experiment: Experiment, base: Base, arm: Arm) -> ArmCheckpoint:
    """Make the narrow dense start of `Dnz` (pretrained like D0) or `Dcut` (cut from D0), or load it where it is finished."""
    study, name = experiment.study, start_name(arm)
    narrow = study.narrow[f"{arm.density:g}"]
    about = {"base": base.key, "arm": name, "shape": narrow.model_dump(mode="json"), "settings": study.digest("sparsify", "pretrain")}
    key = sha256_of_json({**about, "code": module_digest("sparsecl.recovery")})
    start = replace(arm, name=name)
    if checkpoint_is(experiment.find(name), key) and not experiment.recompute:
        return load_arm(experiment, start, key)
    if arm.lineage == "Dnz":
        model, log = pretrain(experiment, base.tokenizer, narrow, experiment.write_path(f"{name}-{key[:12]}.training.safetensors"))
        costs = training_costs(study, model, None, log)
    else:
        model = cut_to_shape(load_arm(experiment, study.arm("D0")).model, narrow, calibration_rows(experiment, base))
        costs = None
    save_checkpoint(model, experiment.write_path(name), None, arm=name, key=key, costs=costs)
    return ArmCheckpoint(start, model, None, key)


def narrow_cost_tables(experiment: Experiment) -> dict[str, list[dict]]:
    """Rows of cost and timings for the pretraining of the narrow models; a cut one took a single pass, which nobody counts as training."""
    tables: dict[str, list[dict]] = {"cost": [], "timings": []}
    for arm in experiment.arms_made("Dnz"):
        keys = {"arm": arm.name, "method": "pretraining", "seed": experiment.replicate, "job": "01_sparsify"}
        costs = checkpoint_manifest(experiment.find(start_name(arm)))["costs"]
        for table, rows in cost_tables(keys, costs, experiment.device, experiment.study.dtype).items():
            tables[table] += rows
    return tables


def recovery_steps(experiment: Experiment, base: Base, arm: Arm) -> int:
    """The recovery budget of an arm in steps: the study's, its multiple, or as many as equal FLOPs allow."""
    steps = max(round(arm.budget * experiment.study.recover.steps), 1)
    return matched_steps(experiment.study, arm, steps, recovery_consumption(experiment, base))


def recover_arm(experiment: Experiment, base: Base, arm: Arm) -> ArmCheckpoint:
    """Train an arm from its start on the recovery rows, or load it where it is finished.

    The checkpoint's manifest keeps the recovery curve and its cost (`making_of`).
    """
    study, start = experiment.study, start_of(experiment, arm)
    settings = study.recover.model_copy(update={"steps": recovery_steps(experiment, base, arm)})
    about = {
        "upstream": start.key,
        "masks": made_masks_digest(experiment, arm),
        "arm": arm.name,
        "steps": settings.steps,
        "settings": study.digest("seed", "recover", "match_calibration", "sparsify", "dtype"),
        "replicate": experiment.replicate,
    }
    key = sha256_of_json({**about, "code": module_digest("sparsecl.recovery")})
    if checkpoint_is(experiment.find(arm.name), key) and not experiment.recompute:
        return load_arm(experiment, arm, key)
    calibration_costs = None if arm.is_sparse or not study.match_calibration else _see_calibration(experiment, base, start)
    curve, log = _recover(experiment, base, arm, start, settings)
    recovered = ArmCheckpoint(arm, start.model, start.masks, key)
    costs = training_costs(study, recovered.model, recovered.masks, log)
    about = {"arm": arm.name, "key": key, "curve": curve, "costs": costs, "calibration_costs": calibration_costs}
    save_checkpoint(recovered.model, experiment.write_path(arm.name), recovered.masks, **about)
    return recovered


def _see_calibration(experiment: Experiment, base: Base, start: ArmCheckpoint) -> dict:
    """Train a dense partner once on the calibration rows, as recovery trains; return what that cost.

    A conversion passes these rows forward twice, at two thirds of a training step's cost, so the dense arm gets at least as much.
    """
    study = experiment.study
    rows = calibration_rows(experiment, base)
    settings = study.recover.model_copy(update={"steps": len(rows) // study.recover.batch})
    plan = plan_batches([len(row.ids) for row in rows], settings.steps, settings.batch, experiment.generator("calibration-order"))
    log = train(start.model, rows, plan, settings, description=f"{start.arm.name}: calibration rows", dtype=study.dtype)
    return training_costs(study, start.model, None, log)


def _recover(
    experiment: Experiment, base: Base, arm: Arm, start: ArmCheckpoint, settings: Optimisation
) -> tuple[list[dict], TrainingLog]:  # fmt: skip
    study = experiment.study
    rows = base.rows(experiment.suite.pretraining, study.tokenizer.max_length)
    plan = plan_batches([len(row.ids) for row in rows], settings.steps, settings.batch, experiment.generator("recovery"))
    general = base.rows(experiment.suite.general, study.tokenizer.max_length)
    points = {round(settings.steps * point / RECOVERY_POINTS) for point in range(1, RECOVERY_POINTS + 1)}
    curve: list[dict] = []

    def measure(step: int) -> None:
        if step == 0 or step in points:
            scores = score_rows(start.model, general, study.scoring_batch)
            curve.append({"step": step, "nll": scores.loss, "score": scores.score if has_answers(experiment.suite.general) else None})

    measure(0)
    log = train(
        start.model, rows, plan, settings, description=f"recover {arm.name}", masks=start.masks, dtype=study.dtype, after_step=measure
    )
    return curve, log
