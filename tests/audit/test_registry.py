import pytest

from mi_audit.audit import registry
from mi_audit.core.errors import ConfigError


def test_a_file_name_is_the_name_on_the_command_line():
    assert {"gmi", "ppa"} <= set(registry.attacks())
    assert "tldmi" in registry.defenses() and "gmi-gan" in registry.priors()
    assert {"attack-accuracy", "knn-distance", "fid"} <= set(registry.metrics())


def test_an_unknown_method_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'gmi'"):
        registry.pick("attack", registry.attacks(), "gmii")


def test_settings_are_converted_to_the_type_of_the_field():
    attack = registry.build("attack", registry.attacks()["gmi"], "gmi", {"steps": "70"})
    assert attack.steps == 70


def test_an_unknown_setting_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        registry.build("attack", registry.attacks()["gmi"], "gmi", {"step": 70})


def test_a_setting_of_the_wrong_type_names_itself_and_the_method():
    with pytest.raises(ConfigError, match=r"valid steps of the attack gmi, got 'many'"):
        registry.build("attack", registry.attacks()["gmi"], "gmi", {"steps": "many"})


def test_a_setting_out_of_range_is_refused_in_the_method_s_own_words():
    with pytest.raises(ConfigError, match="keep"):
        registry.build("attack", registry.attacks()["ppa"], "ppa", {"keep": 9, "restarts": 8})


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("bido", "images_per_class", None), ("dp-sgd", "delta", None), ("bido", "layers", "none")],
)
def test_none_is_a_word_for_what_may_be_left_out_but_a_text_among_texts(name, setting, value):
    assert getattr(registry.build("defense", registry.defenses()[name], name, {setting: "none"}), setting) == value


def test_none_is_no_number():
    with pytest.raises(ConfigError, match=r"valid lambda_x of the defense bido, got 'none'"):
        registry.build("defense", registry.defenses()["bido"], "bido", {"lambda_x": "none"})
