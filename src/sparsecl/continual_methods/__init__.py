"""Methods of continual fine-tuning, one module each, behind one interface (paper, section Methods)."""

from sparsecl.continual_methods.activation_mask import ActivationMask, RandomMask
from sparsecl.continual_methods.activation_mask_branch import ActivationMaskBranch
from sparsecl.continual_methods.ewc import ElasticWeightConsolidation
from sparsecl.continual_methods.full import Full
from sparsecl.continual_methods.lora import LowRankAdaptation
from sparsecl.continual_methods.method import Method, Stage, StageContext
from sparsecl.continual_methods.o_lora import PenalisedLowRankAdaptation
from sparsecl.continual_methods.orthogonal_lora import OrthogonalLowRankAdaptation
from sparsecl.continual_methods.osf import OrthogonalSubspaceFineTuning
from sparsecl.continual_methods.replay import ExperienceReplay
from sparsecl.method_settings import MethodSettings

__all__ = ["MAKERS", "Method", "Stage", "StageContext", "method_of"]

MAKERS = {
    "full": lambda settings: Full(),
    "lora": lambda settings: LowRankAdaptation(settings.lora),
    "replay": lambda settings: ExperienceReplay(settings.replay),
    "ewc": lambda settings: ElasticWeightConsolidation(settings.ewc),
    "activation-mask": lambda settings: ActivationMask(settings.activation_mask),
    "activation-mask-random": lambda settings: RandomMask(settings.activation_mask),
    "activation-mask-branch": lambda settings: ActivationMaskBranch(settings.activation_mask_branch),
    "orthogonal-lora": lambda settings: OrthogonalLowRankAdaptation(settings.orthogonal_lora),
    "o-lora": lambda settings: PenalisedLowRankAdaptation(settings.o_lora),
    "osf": lambda settings: OrthogonalSubspaceFineTuning(settings.osf),
}


def method_of(name: str, settings: MethodSettings) -> Method:
    """A fresh method for one stream; ValueError where the name is unknown."""
    if name not in MAKERS:
        raise ValueError(f"method {name!r} is unknown; known: {', '.join(MAKERS)}")
    return MAKERS[name](settings)
