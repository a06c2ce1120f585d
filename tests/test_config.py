"""Studies: every shipped one loads; bad settings stop with key, value and what is allowed."""

import pytest
import yaml

from sparsecl.arms import parse_arm
from sparsecl.config import Study
from sparsecl.randomness import generator, stream_seed
from sparsecl.study_files import known_studies, load_study
from sparsecl.tree import REPOSITORY


@pytest.fixture
def settings() -> dict:
    return yaml.safe_load((REPOSITORY / "configs" / "smoke.yaml").read_text())


def refused(tmp_path, settings) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError) as error:
        load_study(path)
    return str(error.value)


@pytest.mark.parametrize("name", known_studies())
def test_every_shipped_study_loads_and_is_short(name):
    assert load_study(name).name == name
    assert len((REPOSITORY / "configs" / f"{name}.yaml").read_text().splitlines()) <= 100


def test_every_field_has_a_sentence_with_its_unit():
    waiting, seen = [Study], set()
    while waiting:
        model = waiting.pop()
        seen.add(model)
        for name, field in model.model_fields.items():
            assert field.description and field.description.endswith("."), f"{model.__name__}.{name}"
        waiting += [
            kind for kind in model.__annotations__.values() if isinstance(kind, type) and hasattr(kind, "model_fields") and kind not in seen
        ]
    assert len(seen) > 5


def test_unknown_keys_and_wrong_types_name_the_key(tmp_path, settings):
    message = refused(tmp_path, {**settings, "replicats": 3, "seed": "many"})
    assert "2 setting(s)" in message and "replicats" in message and "seed (value 'many')" in message


def test_fewer_than_two_replicates(tmp_path, settings):
    assert "replicates (value 1): Input should be greater than or equal to 2" in refused(tmp_path, {**settings, "replicates": 1})


def test_a_block_that_does_not_divide_a_layer(tmp_path, settings):
    settings["model"]["hidden"] = 80
    message = refused(tmp_path, {**settings, "arms": [*settings["arms"], "S0-block64"]})
    assert "arms: S0-block64: block64 needs inputs divisible by 64, but self_attn.q_proj has 80" in message
    settings["model"]["ffn"] = 100
    message = refused(tmp_path, {**settings, "arms": ["D0", "D1", "S1-2of4", "S0-8of16"]})
    assert "arms: S0-8of16: 8of16 needs inputs divisible by 16, but mlp.down_proj has 100" in message


def test_a_learning_rate_is_tried_or_given(tmp_path, settings):
    """The grid is tried for every method that has no rate of its own; with a single rate nothing is tried."""
    path = tmp_path / "given.yaml"
    settings["continual"] |= {"learning_rates": [1e-3, 2e-3], "method_learning_rates": {"ewc": 8e-3}}
    path.write_text(yaml.safe_dump(settings))
    study = load_study(path)
    assert set(study.streamed()) - set(study.swept()) == {"ewc"} and study.needs_validation()
    assert study.continual.fixed_learning_rate("ewc") == 8e-3

    settings["continual"] |= {"learning_rates": [2e-3]}
    path.write_text(yaml.safe_dump(settings))
    study = load_study(path)
    assert study.swept() == {} and not study.needs_validation() and study.replicate_names()[0] == 0
    assert [study.continual.fixed_learning_rate(method) for method in ("full", "lora", "ewc")] == [2e-3, 2e-3, 8e-3]

    for method in ("joint", "activation-mask-random"):
        settings["continual"]["method_learning_rates"] = {method: 1e-3}
        assert f"method_learning_rates: ['{method}'] do not run or take another's rate" in refused(tmp_path, settings)


def test_arms_that_are_compared_are_checked_too(tmp_path, settings):
    message = refused(tmp_path, {**settings, "comparison": {"replicates": 2, "arms": ["S1-5of7"]}})
    assert "arms: S0-5of7: 5of7 needs inputs divisible by 7, but self_attn.q_proj has 64" in message
    message = refused(tmp_path, {**settings, "comparison": {"replicates": 0, "arms": ["S1-6of8"]}})
    assert "comparison.replicates (value 0): Input should be greater than or equal to 1" in message


@pytest.mark.parametrize(("algorithm", "field"), [("maskllm", "maskllm"), ("given", "given_mask")])
def test_an_algorithm_without_its_settings_is_refused(tmp_path, settings, algorithm, field):
    message = refused(tmp_path, {**settings, "comparison": {"replicates": 2, "arms": [f"S1-2of4-{algorithm}"]}})
    assert f"sparsify.{field}: absent, but arm S0-2of4-{algorithm} needs it; add it or drop the arm" in message
    settings["sparsify"]["algorithm"] = algorithm
    assert f"sparsify.{field}: absent" in refused(tmp_path, {**settings, "arms": ["D0", "D1", "S1-2of4"]})


def test_a_replicate_makes_the_compared_arms_up_to_their_number(tmp_path, settings):
    settings |= {
        "replicates": 3,
        "arms": ["D0", "D1", "S1-2of4", "S1-block16"],
        "comparison": {"replicates": 2, "arms": ["S1-6of8", "S1-2of4-random"]},
        "ladder": settings["ladder"] | {"replicates": 3},
    }
    settings["continual"] |= {"arms": ["D1", "S1-2of4"], "further": {}, "method_learning_rates": {}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    study = load_study(path)
    always = ("D0", "D1", "S0-2of4", "S1-2of4", "S0-block16", "S1-block16")  # an S1 brings the S0 it starts from
    compared = ("S0-6of8", "S1-6of8", "S0-2of4-random", "S1-2of4-random")
    rungs = ("Dw-32", "Dw-48")
    assert study.arms_of(0) == study.arms_of(1) == always + compared + rungs and study.arms_of(2) == always + rungs
    assert tuple(arm.name for arm in study.all_arms()) == always + compared + rungs
    assert set(study.arms_of("validation")) == {"D0", "D1", "S0-2of4", "S1-2of4"}  # what the stream needs
    path.write_text(yaml.safe_dump({**settings, "comparison": None, "ladder": None}))
    assert load_study(path).arms_of(0) == always
    assert study.widths() == {"D0": 64, "Dw-32": 32, "Dw-48": 48}
    for replicates, shapes, match in [
        (4, settings["ladder"]["shapes"], "4 of 3 replicates"),
        (2, {"64": settings["ladder"]["shapes"]["32"]}, "32"),
    ]:
        path.write_text(yaml.safe_dump({**settings, "ladder": {"replicates": replicates, "shapes": shapes}}))
        with pytest.raises(ValueError, match=match):
            load_study(path)


def test_a_method_that_fills_zeros_is_refused_on_a_sparse_arm(tmp_path, settings):
    settings["continual"]["further"]["osf"] = {"replicates": 1, "arms": ["S1-2of4"], "methods": ["osf"]}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="would fill the zeros of \\['S1-2of4'\\]"):
        load_study(path)


def test_a_method_that_chooses_what_it_trains_is_refused_on_an_arm_with_confined_updates(tmp_path, settings):
    path = tmp_path / "study.yaml"
    for method in ("activation-mask", "lora", "orthogonal-lora", "osf"):
        settings["continual"]["further"]["confined"] = {"replicates": 1, "arms": ["Dg-2of4"], "methods": ["full", "replay", method]}
        path.write_text(yaml.safe_dump(settings))
        with pytest.raises(ValueError, match=rf"further.confined: \['{method}'\] choose what they train, and so does \['Dg-2of4'\]"):
            load_study(path)


def test_a_control_takes_the_learning_rate_of_its_method_and_a_repeat_is_no_order_of_its_own(settings):
    study = load_study("smoke")
    assert "activation-mask" in study.swept() and "activation-mask-random" not in study.swept()
    assert study.continual.all_orders()["repeat"] == study.continual.orders["main"]
    assert "repeat" not in study.continual.orders_named(("williams",))


def test_top_k_of_no_neuron_and_of_all(tmp_path, settings):
    settings["probe"]["top_fraction"] = 0.001
    assert "0.001 of 128 neurons is none" in refused(tmp_path, settings)
    settings["probe"]["top_fraction"] = 1.0
    assert "probe.top_fraction (value 1.0): Input should be less than 1" in refused(tmp_path, settings)


def test_orders_must_hold_the_domains(tmp_path, settings):
    settings["continual"]["orders"]["reversed"] = ["math", "code"]
    assert "orders.reversed" in refused(tmp_path, settings)


def test_a_streamed_arm_must_be_made(tmp_path, settings):
    settings["continual"]["arms"] = ["D1", "S1-4of8"]
    assert "continual.arms: ['S1-4of8'] are not among arms" in refused(tmp_path, settings)


def test_an_unknown_study_lists_the_known():
    with pytest.raises(ValueError, match="study 'nope; rm -rf x' is unknown; known: .*builtin.*, realtext, smoke"):
        load_study("nope; rm -rf x")


def test_not_yaml_names_the_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ValueError, match="broken.yaml: not YAML"):
        load_study(path)


def test_a_digest_sees_its_sections_only():
    study = load_study("smoke")
    other = study.model_copy(update={"probe": study.probe.model_copy(update={"permutations": 7})})
    assert study.digest("model", "seed") == other.digest("model", "seed") and study.digest() != other.digest()


def test_arm_names_say_topology_algorithm_and_density():
    arm = parse_arm("S1-unstructured-wanda-d0.75")
    assert (arm.topology, arm.algorithm, arm.density) == ("unstructured", "wanda", 0.75)
    assert parse_arm("S1-2of4").label == "S1 2:4" and parse_arm("Dnz-0.5").density == 0.5
    for name in ("S2-2of4", "S1", "S1-4of4", "S1-block8", "D1-2of4", "S1-2of4-wonda"):
        with pytest.raises(ValueError, match=name.split("-")[-1]):
            parse_arm(name)


def test_a_pattern_says_its_density_itself():
    assert [parse_arm(f"S1-{pattern}").density for pattern in ("1of4", "2of4", "6of8", "3of7")] == [0.25, 0.5, 0.75, 3 / 7]
    assert parse_arm("S1-6of8-wanda++").algorithm == "wanda++" and parse_arm("S1-6of8").label == "S1 6:8"
    with pytest.raises(ValueError, match="arm 'S1-6of8-d0.75': 6of8 itself fixes the density at 0.75; leave 'd0.75' out"):
        parse_arm("S1-6of8-d0.75")
    assert parse_arm("S1-block16-d0.625").density == 0.625


def test_streams_are_stable_and_apart():
    # Fixed for ever: published tables depend on it.
    assert stream_seed(1, 0, "base") == 4998801263071490900
    seeds = {stream_seed(seed, replicate, name) for seed in (1, 2) for replicate in (0, 1, "validation") for name in ("base", "data")}
    assert len(seeds) == 12
    assert generator(1, 0, "data").integers(1 << 60) == generator(1, 0, "data").integers(1 << 60)
