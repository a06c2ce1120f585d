"""Registration files: what they must hold, what is refused, and the two that are committed."""

import pytest

from sparsecl import preregistration
from sparsecl.preregistration import exploratory_analysis, load_preregistration
from sparsecl.study_files import load_study

PILOT = load_preregistration("builtin")
REGISTERED = load_preregistration("builtin-full")


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
    ],
)
def test_a_registration_that_does_not_fit_names_its_key(tmp_path, study, change, message):
    old, new = change.split(" -> ")
    text = (preregistration.FOLDER / f"{study}.yaml").read_text()
    assert text.count(old) >= 1
    (tmp_path / f"{study}.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_preregistration(study, tmp_path)
