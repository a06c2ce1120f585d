"""Methods of continual fine-tuning, one module each, behind one interface (paper, section Methods)."""

from sparsecl.continual_methods.ewc import ElasticWeightConsolidation
from sparsecl.continual_methods.full import Full
from sparsecl.continual_methods.lora import LowRankAdaptation
from sparsecl.continual_methods.method import Method, Stage, StageContext
from sparsecl.continual_methods.replay import ExperienceReplay
from sparsecl.method_settings import MethodSettings

__all__ = ["MAKERS", "Method", "Stage", "StageContext", "method_of"]

MAKERS = {
    "full": lambda settings: Full(),
    "lora": lambda settings: LowRankAdaptation(settings.lora),
    "replay": lambda settings: ExperienceReplay(settings.replay),
    "ewc": lambda settings: ElasticWeightConsolidation(settings.ewc),
}


def method_of(name: str, settings: MethodSettings) -> Method:
    """A fresh method for one stream; ValueError where the name is unknown."""
    if name not in MAKERS:
        raise ValueError(f"method {name!r} is unknown; known: {', '.join(MAKERS)}")
    return MAKERS[name](settings)
