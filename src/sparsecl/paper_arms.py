"""The arms and contrasts that the paper speaks of (paper, sections Controls, Topologies, Frontier, Orders, Efficiency).

A study may run fewer: what it did not run is absent. Contrasts are (treatment, reference).
"""

TREATMENT, REFERENCE = "S1-2of4", "D1"
MAIN_ARMS = ("D1", "S1-2of4", "S1-4of8", "S1-block32", "Dnz-0.5", "Df-0.5", "Dg-2of4")
FURTHER_ARMS = (
    "D0", "S0-2of4", "Sf-2of4", "Dcut-0.5", "S1-2of4-random", "S1-block16", "S1-block64", "S1-unstructured",
    "S1-6of8", "S1-unstructured-d0.75", "S1-2of4-b0.5", "S1-2of4-b2", "D1-b0.5", "D1-b2",
)  # fmt: skip
ARMS = (*MAIN_ARMS, *FURTHER_ARMS)

DENSE_CONTROLS = ("D1", "Dnz-0.5", "Dcut-0.5", "Df-0.5", "Dg-2of4", "D0")
SPARSE_CONTROLS = ("Sf-2of4", "S1-2of4-random", "S0-2of4")
TOPOLOGY_ARMS = ("S1-unstructured", "S1-4of8", "S1-2of4", "S1-block16", "S1-block32", "S1-block64")
DOSE_ARMS = ("D1", "S1-6of8", "S1-2of4", "S1-unstructured-d0.75", "S1-unstructured")
BUDGETS = {"0": ("D0", "S0-2of4"), "0.5": ("D1-b0.5", "S1-2of4-b0.5"), "1": ("D1", "S1-2of4"), "2": ("D1-b2", "S1-2of4-b2")}

H1_CONTRASTS = (  # of the hypothesis about forgetting, those beside it included; the families use them too
    (TREATMENT, "D1"), (TREATMENT, "Dnz-0.5"), (TREATMENT, "Df-0.5"), ("Dg-2of4", "D1"), (TREATMENT, "Dg-2of4"),
)  # fmt: skip
H3_CONTRASTS = (("S1-2of4", "S1-4of8"), ("S1-2of4", "S1-block32"), ("S1-4of8", "S1-block32"))
CONTRASTS = tuple(
    dict.fromkeys(
        (
            *H1_CONTRASTS,
            *((TREATMENT, arm) for arm in (*DENSE_CONTROLS, *SPARSE_CONTROLS)),
            *((arm, REFERENCE) for arm in (*TOPOLOGY_ARMS, *DOSE_ARMS, "Sf-2of4") if arm != REFERENCE),
            *H3_CONTRASTS,
            ("S0-2of4", "D0"),
            ("D1", "D0"),
        )
    )
)
FRONTIER_CONTRASTS = ((TREATMENT, "D1"), (TREATMENT, "Dnz-0.5"))
ORDER_ARMS = ("D1", "S1-2of4", "S1-4of8", "S1-block32")
EFFICIENCY_CONTRASTS = ((TREATMENT, "D1"), (TREATMENT, "Df-0.5"), ("Sf-2of4", "D1"))
EFFICIENCY_ARMS = ("D1", "Dnz-0.5", "Dcut-0.5", "Df-0.5", "Dg-2of4", *TOPOLOGY_ARMS, "S1-6of8", "Sf-2of4")  # their streams cost differently
