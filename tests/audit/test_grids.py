from dataclasses import fields, replace

import pytest

from mi_audit.audit import registry
from mi_audit.audit.grids import GRIDS, Grid, option_of, read_grid, substituted, value_of
from mi_audit.audit.plan import DefendPlan
from mi_audit.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "method", "parameter", "values"),
    [
        ("freeze=0%,40% , 80%", "tldmi", "freeze", ("0%", "40%", "80%")),
        ("tldmi.freeze=80%", "tldmi", "freeze", ("80%",)),
        ("bido.lambda_x=.01,.05", "tldmi+bido", "bido.lambda_x", (".01", ".05")),
        ("epochs=5,10", "tldmi+bido", "epochs", ("5", "10")),
        ("bido.layers=[1,2],[3]", "bido", "bido.layers", ("[1,2]", "[3]")),
        ("freeze", "tldmi", "freeze", GRIDS["freeze"]),
        ("negls.alpha", "negls", "negls.alpha", ("-0.01", "-0.05", "-0.1")),
        ("alpha", "negls", "alpha", ("-0.01", "-0.05", "-0.1")),
    ],
)
def test_reads_a_grid(text, method, parameter, values):
    assert read_grid(text, method) == Grid(parameter, values)


@pytest.mark.parametrize(
    ("text", "method", "message"),
    [
        ("=1,2", "tldmi", "expected --sweep NAME=VALUE"),
        ("freeze=", "tldmi", "expected values after --sweep freeze="),
        ("freeze=80%,80%", "tldmi", "got 80% twice"),
        ("weight_decay", "tldmi", "usual values are known of freeze, mid.weight"),
        ("lambda_x=1", "tldmi+bido", r"expected the name of a method .* as in tldmi\.lambda_x"),
    ],
)
def test_refuses_what_is_no_grid(text, method, message):
    with pytest.raises(ConfigError, match=message):
        read_grid(text, method)


def test_folders_are_plain_names_and_all_different():
    assert Grid("x", ("a-b", "a-b-3", "a/b", "a b")).folders == ("a-b", "a-b-3", "a-b-2", "a-b-4")
    assert Grid("x", ("a", "A", "a-2")).folders == ("a", "A-2", "a-2-2")  # some disks take `a` for `A`
    grid = Grid("x", ("80%", "params:80%", "params-80%", "-0.1", ".05", "[1,2]", "module:net.layer3"))
    assert grid.folders == ("80%", "params-80%", "params-80%-2", "minus-0.1", "0.05", "1-2", "module-net.layer3")


def test_a_value_gets_into_the_plan_where_the_engine_reads_it():
    plan = DefendPlan(method="tldmi", freeze="10%", settings={"head_epochs": 2}, sweep="x", tolerance=3.0)
    assert substituted(plan, "freeze", "40%") == DefendPlan(
        method="tldmi", freeze="40%", settings={"head_epochs": 2}, tolerance=3.0
    )
    assert substituted(plan, "epochs", "7").epochs == 7 and substituted(plan, "lr", ".1").lr == 0.1
    assert substituted(plan, "head_epochs", "3").settings == {"head_epochs": 3}
    assert substituted(plan, "tldmi.head_epochs", "3").settings == {"head_epochs": 3}


def test_settings_of_combined_methods_lie_under_their_part():
    plan = DefendPlan(method="tldmi+bido", settings={"bido": {"lambda_y": 0.5, "lambda_x": 0.05}, "tldmi": {}})
    found = substituted(plan, "bido.lambda_x", "0.01").settings
    assert found == {"bido": {"lambda_y": 0.5, "lambda_x": 0.01}, "tldmi": {}}
    assert plan.settings["bido"] == {"lambda_y": 0.5, "lambda_x": 0.05}
    alone = DefendPlan(method="bido", settings={"bido": {"lambda_y": 0.5}})
    assert substituted(alone, "bido.lambda_x", "1").settings == {"bido": {"lambda_y": 0.5, "lambda_x": 1}}


def test_a_method_keeps_its_settings_and_those_of_what_freezes():
    settings = {"bido": {"lambda_x": 0.1}, "mid": {"weight": 0.1}, "tldmi": {"head_epochs": 2}}
    free = DefendPlan(settings=settings)
    assert substituted(free, "method", "bido") == DefendPlan(method="bido", settings={"bido": settings["bido"]})
    kept = {"bido": settings["bido"], "tldmi": settings["tldmi"]}
    for cut in ("80%", "none"):
        assert substituted(replace(free, freeze=cut), "method", "bido").settings == kept
    assert substituted(free, "method", "bido+tldmi").settings == kept


def test_a_word_where_a_number_belongs_is_refused():
    with pytest.raises(ConfigError, match="expected a whole number for --sweep epochs, got 'many'"):
        substituted(DefendPlan(), "epochs", "many")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), (".05", 0.05), ("1e-3", 0.001), ("true", True), ("false", False), ("cosine", "cosine")],
)
def test_values_are_numbers_where_they_look_like_numbers(text, value):
    assert value_of(text) == value and type(value_of(text)) is type(value)


def test_every_value_alone_is_a_command():
    assert option_of("freeze", "80%") == ("--freeze", "80%")
    assert option_of("batch_size", "8") == ("--train-batch-size", "8")
    assert option_of("bido.lambda_x", ".05") == ("--set", "defend.settings.bido.lambda_x=.05")


@pytest.mark.parametrize("name", [name for name in GRIDS if "." in name])
def test_the_usual_grids_name_settings_that_exist(name):
    method, setting = name.split(".")
    if method not in registry.defenses():
        pytest.skip(f"{method} is not here")
    assert setting in {field.name for field in fields(registry.defenses()[method])}
    for value in GRIDS[name]:
        registry.build("defense", registry.defenses()[method], method, {setting: value_of(value)})
