"""Suites: the items one replicate trains on and is scored on (paper, section Data).

`build_suite` serves both kinds of data. The generated suite has five domains, each with an *ability*
task, scored on held-out inputs, and a *fact* task, random associations scored as trained. Its base is
pretrained on a mixture of 45 % domain lines over the public half of each domain's rule elements, 13 %
general facts, 22 % textbook lines, 12 % arithmetic and 8 % ordinals. Textbook lines state every rule,
private ones too, but never in the domain's format: the base knows the rules, and a stage teaches the
task. A stage then trains on all rule elements and on the domain's facts.
"""

from sparsecl.config import Study
from sparsecl.items import Suite
from sparsecl.randomness import generator
from sparsecl.settings import GeneratedData


def build_suite(study: Study, replicate: int | str) -> Suite:
    """Build the suite of a replicate; it belongs to the replicate's base (stream `data`)."""
    stream = generator(study.seed, study.base_of(replicate), "data")
    if isinstance(study.data, GeneratedData):
        from sparsecl.suites import generated

        return generated.build(study.data, stream)
    from sparsecl.suites import real

    return real.build(study.data, stream)
