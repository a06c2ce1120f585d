"""The ladder of widths: dense bases trained alike, on which the probes look for a trend with scale (paper, section Scale).

A rung `Dw-<hidden>` sees the rows of D0 in the same order, for as many steps, at the same learning rate; only its width
differs, and with it the number of heads and neurons. D0 itself is the rung of the study's own width.
"""

from sparsecl.arms import RUNG, Arm
from sparsecl.base import Base, pretrain
from sparsecl.code_digest import module_digest
from sparsecl.costs import cost_tables, training_costs
from sparsecl.experiment import Experiment
from sparsecl.lineage import ArmCheckpoint, load_arm
from sparsecl.modeling import checkpoint_is, checkpoint_manifest, save_checkpoint
from sparsecl.records import sha256_of_json


def make_rung(experiment: Experiment, base: Base, arm: Arm) -> ArmCheckpoint:
    """Pretrain a rung from random weights like D0, or load it where it is finished."""
    study, shape = experiment.study, experiment.study.ladder.shapes[arm.name.removeprefix(f"{RUNG}-")]
    about = {"base": base.key, "arm": arm.name, "shape": shape.model_dump(mode="json"), "settings": study.digest("pretrain")}
    key = sha256_of_json({**about, "code": module_digest("sparsecl.ladder")})
    if checkpoint_is(experiment.find(arm.name), key) and not experiment.recompute:
        return load_arm(experiment, arm, key)
    state = experiment.write_path(f"{arm.name}-{key[:12]}.training.safetensors")
    model, log = pretrain(experiment, base.tokenizer, shape, state)
    save_checkpoint(model, experiment.write_path(arm.name), None, arm=arm.name, key=key, costs=training_costs(study, model, None, log))
    state.unlink(missing_ok=True)
    return ArmCheckpoint(arm, model, None, key)


def rung_cost_tables(experiment: Experiment) -> dict[str, list[dict]]:
    """Rows of cost and timings for the pretraining of the rungs."""
    tables: dict[str, list[dict]] = {"cost": [], "timings": []}
    for arm in experiment.arms_made(RUNG):
        keys = {"arm": arm.name, "method": "pretraining", "seed": experiment.replicate, "job": "01_sparsify"}
        costs = checkpoint_manifest(experiment.find(arm.name))["costs"]
        for table, rows in cost_tables(keys, costs, experiment.device, experiment.study.dtype).items():
            tables[table] += rows
    return tables
