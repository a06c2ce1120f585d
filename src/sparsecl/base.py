"""The dense base D0 of a replicate: tokenizer, pretraining, checkpoint (paper, section Models)."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from sparsecl.code_digest import module_digest
from sparsecl.costs import cost_tables, training_costs
from sparsecl.experiment import Experiment, MissingInput
from sparsecl.items import Item
from sparsecl.load_balancing import load_balancing
from sparsecl.modeling import build_model, checkpoint_is, checkpoint_manifest, load_checkpoint, save_checkpoint
from sparsecl.records import sha256_of_json
from sparsecl.settings import Model
from sparsecl.tokenizer import PreTrainedTokenizerFast, Row, encode, load_tokenizer, tokenizer_digest, train_tokenizer
from sparsecl.training import TrainingLog, plan_batches, train


@dataclass(frozen=True)
class Base:
    """What every arm of a replicate starts from."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    key: str  # of the unit; upstream of all that follows
    costs: dict  # of its pretraining, as `costs.training_costs` gives them
    _encoded: dict[tuple, list[Row]] = field(default_factory=dict, repr=False, compare=False)

    def rows(self, items: tuple[Item, ...], max_length: int) -> list[Row]:
        """The items tokenised, once: every arm trains on the same ones."""
        if (items, max_length) not in self._encoded:
            self._encoded[items, max_length] = encode(self.tokenizer, items, max_length)
        return self._encoded[items, max_length]


def base_key(experiment: Experiment) -> str:
    """Digest of what the base depends on."""
    study = experiment.study
    return sha256_of_json(
        {
            "settings": study.digest("seed", "data", "tokenizer", "model", "pretrain", "dtype"),
            "base": experiment.base,
            "sources": dict(experiment.suite.sources),
            "code": module_digest("sparsecl.base", "sparsecl.suites"),
        }
    )


def base_directory(experiment: Experiment) -> tuple[str, str]:
    return (experiment.tree.replicate(experiment.base), "D0")


def make_base(experiment: Experiment) -> Base:
    """Train the base of this replicate, or load it where it is finished.

    Only the replicate that owns the base trains it; one that shares it raises MissingInput instead.
    """
    key = base_key(experiment)
    directory = experiment.tree.find(*base_directory(experiment))
    if checkpoint_is(directory, key) and not experiment.recompute:
        return load_base_checkpoint(directory, key)
    if experiment.base != experiment.replicate:
        raise MissingInput(
            f"replicate {experiment.replicate} starts from the base of replicate {experiment.base}, which is not there: run notebook "
            f"01_sparsify with replicate = {experiment.base!r} first"
        )
    return _train(experiment, key)


def load_base(experiment: Experiment) -> Base:
    """Load the finished base; MissingInput where notebook 01 has not made it."""
    experiment.require("01_sparsify", experiment.base)
    directory = experiment.tree.find(*base_directory(experiment))
    key = base_key(experiment)
    if not checkpoint_is(directory, key):
        raise MissingInput(
            f"the base in {experiment.tree.path(*base_directory(experiment))} was made from other settings or code: "
            "run notebook 01_sparsify again"
        )
    return load_base_checkpoint(directory, key)


def load_base_checkpoint(directory: Path, key: str) -> Base:
    """Load a base whose key was checked; its tokenizer must be the one it was trained with."""
    manifest = checkpoint_manifest(directory)
    if tokenizer_digest(directory / "tokenizer") != manifest["tokenizer_sha256"]:
        raise RuntimeError(f"{directory / 'tokenizer'} is not the tokenizer this base was trained with; delete {directory} and run again")
    return Base(load_checkpoint(directory), load_tokenizer(directory / "tokenizer"), key, manifest["costs"])


def _train(experiment: Experiment, key: str) -> Base:
    study = experiment.study
    tokenizer = train_tokenizer(experiment.suite.pretraining, study.tokenizer.vocabulary)
    directory = experiment.tree.path(*base_directory(experiment))
    state = directory.with_name(f"D0-{key[:12]}.training.safetensors")
    model, log = pretrain(experiment, tokenizer, study.model, state)
    save_checkpoint(model, directory, None, tokenizer, arm="D0", key=key, costs=training_costs(study, model, None, log))
    state.unlink(missing_ok=True)
    return load_base_checkpoint(directory, key)


def pretrain(experiment: Experiment, tokenizer: PreTrainedTokenizerFast, shape: Model, state: Path) -> tuple[nn.Module, TrainingLog]:
    """Train a model of this shape from random weights on the pretraining rows, always the same in the same order.

    `state` is where an interrupted training resumes.
    """
    study = experiment.study
    rows = encode(tokenizer, experiment.suite.pretraining, study.tokenizer.max_length)
    specials = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = build_model(shape, len(tokenizer), study.tokenizer.max_length, experiment.base_seed("base") % 2**32, specials)
    plan = plan_batches([len(row.ids) for row in rows], study.pretrain.steps, study.pretrain.batch, experiment.base_generator("base-order"))
    name = f"pretrain width {shape.hidden}"
    with load_balancing(model, shape.router_aux_coefficient) as penalty:
        return model, train(model, rows, plan, study.pretrain, description=name, penalty=penalty, dtype=study.dtype, checkpoint=state)


def base_costs_tables(experiment: Experiment, base: Base) -> dict[str, list[dict]]:
    """Rows of cost and timings for the pretraining, from the replicate that owns the base; none elsewhere."""
    if experiment.base != experiment.replicate:
        return {}
    keys = {"arm": "D0", "method": "pretraining", "seed": experiment.replicate, "job": "01_sparsify"}
    return cost_tables(keys, base.costs, experiment.device, experiment.study.dtype)
