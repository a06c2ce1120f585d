"""Registration files: what they must hold, what is refused, and those that are committed."""

import pytest

from sparsecl import preregistration
from sparsecl.preregistration import exploratory_analysis, load_preregistration
from sparsecl.protocol import run_parts
from sparsecl.study_files import load_study

PILOT = load_preregistration("builtin")
REGISTERED = load_preregistration("builtin-full")
IMPLICIT = load_preregistration("builtin-implicit")


def test_the_built_in_registration_is_the_pilot():
    hypothesis = PILOT.hypotheses["H1"]
    assert PILOT.status == "pilot" and hypothesis.main.name == "S1-2of4 - D1"
    assert hypothesis.replicates == load_study("builtin").replicates
    assert [contrast.control for contrast in hypothesis.strict] == ["Dnz-0.5", "Df-0.5"]
    assert PILOT.margin == 0.05 and "standard error" in hypothesis.improved.margin_reason
    assert load_preregistration("smoke") is None


def test_the_full_registration_fixes_everything_on_other_replicates():
    assert REGISTERED.status == "registered" and REGISTERED.seed not in (None, PILOT.seed)
    h1, h2, h3 = REGISTERED.hypotheses.values()
    replicates = {h: {c.name: h.registered_replicates(c) for c in h.contrasts} for h in (h1, h2)}
    assert set(replicates[h1].values()) == {20} and replicates[h2] == {"S1-2of4 - Df-0.5": 20, "Sf-2of4 - D1": 5, "S1-2of4 - D1": 20}
    assert h3.replicates == 20 and [pair.name for pair in h3.pairs] == ["S1-2of4 - S1-4of8", "S1-2of4 - S1-block32", "S1-4of8 - S1-block32"]
    assert [(metric.metric, metric.better) for metric in (*h1.deciding, *h2.deciding)] == [
        ("forgetting", "lower"), ("final", "higher"), ("retention", "higher"), ("learning_speed", "higher"),
    ]  # fmt: skip
    assert REGISTERED.exclusions
    assert all(len(metric.margin_reason) > 40 for h in (h1, h2, h3) for metric in h.deciding)


def test_the_registration_of_implicit_sparsity_fits_its_study():
    study = load_study("builtin-implicit")
    assert IMPLICIT.status == "registered" and IMPLICIT.seed == study.seed and IMPLICIT.seed not in (PILOT.seed, REGISTERED.seed)
    h4, *methods = IMPLICIT.hypotheses.values()
    assert {hypothesis.replicates for hypothesis in IMPLICIT.hypotheses.values()} == {study.replicates}
    assert h4.ladder == {f"Dw-{width}": int(width) for width in study.ladder.shapes} | {"D0": study.model.hidden}
    assert h4.activation.top_fraction == study.probe.top_fraction and h4.activation.selection in study.probe.selections
    assert all(len(metric.margin_reason) > 40 for h in IMPLICIT.hypotheses.values() for metric in h.deciding)
    assert [h.main.name for h in methods] == ["D1:activation-mask - D1", "D1:orthogonal-lora - D1"]
    assert [[c.control for c in h.strict] for h in methods] == [["D1:lora"]] * 2
    assert IMPLICIT.leading is methods[0] and IMPLICIT.deciding_topology is None


def test_every_run_of_the_registration_is_run_by_its_study():
    """Also as often as registered, and at several stage lengths where the comparison at equal own needs them."""
    study = load_study("builtin-implicit")
    replicates = {(arm, "full"): study.replicates for arm in study.continual.arms}
    lengths = {}
    for further in study.continual.further.values():
        for arm in further.arms:
            for method in further.methods:
                if further.stage_steps:
                    lengths[arm, method] = (len(further.stage_steps), further.replicates)
                else:
                    replicates[arm, method] = max(replicates.get((arm, method), 0), further.replicates)
    paired = [IMPLICIT.hypotheses[name] for name in ("H5A", "H5B")]
    planned = [contrast for h in paired for contrast in h.contrasts] + [c for f in IMPLICIT.families.values() for c in f.contrasts]
    runs = {run for contrast in planned for run in (contrast.treatment, contrast.control)}
    assert {run: replicates.get(run_parts(run)) for run in runs} == dict.fromkeys(runs, study.replicates)
    for hypothesis in paired:
        for run in (hypothesis.main.treatment, hypothesis.main.control):
            assert lengths[run_parts(run)] == (2, hypothesis.at_equal_own.replicates)


def test_an_unregistered_study_states_its_contrast_without_a_margin():
    analysis = exploratory_analysis("realtext", measure="loss")
    assert analysis.margin is None and analysis.leading.main.name == "S1-2of4 - D1"
    assert [metric.better for metric in analysis.leading.deciding] == ["lower", "lower"], "a lower loss is better at the end too"


@pytest.mark.parametrize(
    ("study", "change", "message"),
    [
        ("builtin", "alpha: 0.05 -> alpha: 5", r"builtin\.yaml: alpha: .*less than 0.5"),
        ("builtin", "margin: 0.05 -> ", "hypotheses.H1: a pilot or registered analysis fixes margin"),
        ("builtin", "replicates: 3\n -> \n", "hypotheses.H1: a pilot or registered analysis fixes margin, margin_reason and replicates"),
        ("builtin", "own: own -> own: acquired", "acquired is in none"),
        ("builtin", "control: D1, role: main -> control: D1, role: strict", "exactly one needs the role main"),
        ("builtin", "treatment: S1-2of4, control: D1 -> treatment: S1-4of8, control: D1", "not of the deciding topology 2of4"),
        ("builtin", "control: Df-0.5 -> control: Dx", "arm 'Dx' is unknown"),
        ("builtin", "study: builtin -> study: other", "study is 'other'"),
        ("builtin", "status: pilot -> status: pilot\npeeked: true", "peeked: Extra inputs"),
        ("builtin", "metric: forgetting -> metric: [", "not YAML"),
        ("builtin", "better: lower -> better: smaller", "better: Input should be 'lower' or 'higher'"),
        ("builtin", "test: paired -> test: anova", "test"),
        ("builtin", "method: full -> method: lora", "method: Input should be 'full'"),
        ("builtin", "  kinds: ->   H1:", "H1.* name a hypothesis too"),
        ("builtin-full", "arms: [S1-2of4, S1-4of8, S1-block32] -> arms: [S1-2of4, S1-2of4-random]", "different topologies and one density"),
        ("builtin-full", "arms: [S1-2of4, S1-4of8, S1-block32] -> arms: [S1-2of4, S1-6of8]", "different topologies and one density"),
        ("builtin-implicit", "Dw-64: 64 -> Dw-64: 96", "hypotheses.H4.scale_trend: ladder: .*must hold D0"),
        ("builtin-implicit", "Dw-64: 64, D0: 128 -> Dw-64: 64", "must hold D0 and arms such as Dw-64"),
        ("builtin-implicit", 'control: "D1:lora" -> control: "D1:sgd"', "run 'D1:sgd': write the arm alone for full, else a method"),
        ("builtin-implicit", 'control: "D1:lora" -> control: "D1:full"', "run 'D1:full'"),
        ("builtin-implicit", "margin: 0.02 -> ", "hypotheses.H4: a pilot or registered analysis fixes margin"),
        ("builtin-implicit", "at_equal_own: {replicates: 4} -> at_equal_own: {}", "at_equal_own.replicates: Field required"),
        (
            "builtin-implicit",
            "alpha: 0.05 -> alpha: 0.05\ndeciding_topology: 2of4",
            "hypotheses.H5A.contrasts: .* not of the deciding topology",
        ),
    ],
)
def test_a_registration_that_does_not_fit_names_its_key(tmp_path, study, change, message):
    old, new = change.split(" -> ")
    text = (preregistration.FOLDER / f"{study}.yaml").read_text()
    assert text.count(old) >= 1
    (tmp_path / f"{study}.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_preregistration(study, tmp_path)
