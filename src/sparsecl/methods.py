"""The methods of continual fine-tuning: one spelling, label and colour each (paper, section Methods).

What a method does to a stage is in `sparsecl.continual_methods`. Nothing here imports torch: settings read it.
"""

from dataclasses import dataclass

FULL = "full"  # the main protocol
JOINT, SINGLE = "joint", "single"  # references: what could be kept, and what could be learned


@dataclass(frozen=True)
class MethodName:
    """How a method is written and drawn."""

    name: str
    label: str
    colour: str


# Colour-blind safe (Tol's muted set), apart from the colours of the arms.
METHODS = {
    method.name: method
    for method in (
        MethodName(FULL, "full fine-tuning", "#1B1B1B"),
        MethodName("lora", "LoRA", "#332288"),
        MethodName("replay", "replay", "#117733"),
        MethodName("ewc", "EWC", "#AA4499"),
        MethodName("activation-mask", "activation mask", "#C99700"),
        MethodName("activation-mask-random", "random mask", "#999933"),
        MethodName("activation-mask-branch", "activation-mask branch", "#CC6677"),
        MethodName("orthogonal-lora", "orthogonal LoRA", "#88CCEE"),
        MethodName("o-lora", "O-LoRA", "#44AA99"),
        MethodName("osf", "OSF", "#882255"),
        MethodName(SINGLE, "each domain alone", "#888888"),
        MethodName(JOINT, "all domains mixed", "#BBBBBB"),
    )
}
# A method with the learning rate of another, from which it differs in one thing.
RATE_OF = {"activation-mask-random": "activation-mask"}
DENSE_ONLY = ("osf",)  # their result has no zeros
REFERENCES = (SINGLE, JOINT)  # they are no streams of domains and use the learning rate of `full`
WHOLE_WEIGHTS = (FULL, "replay", "ewc", *REFERENCES)  # they train the weights as they are, so that Dg can confine their updates
