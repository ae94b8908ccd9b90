import inspect

import pytest

from mi_audit.audit.settings_tables import OPEN, DefendTable, flag_of, leaves
from mi_audit.cli.attack import attack, defend
from mi_audit.cli.judge import gate
from mi_audit.nn.freezing import GRAMMAR, parse


def options(command):
    return inspect.signature(command).parameters


def name(key):
    return flag_of(key).strip("-").replace("-", "_").lower()


@pytest.mark.parametrize("key", leaves())
def test_every_setting_has_an_option(key):
    assert name(key) in options(defend)
    assert (name(key) in options(attack)) == (key[0] != "defend")
    assert (name(key) in options(gate)) == (key[0] in ("gate", "baseline", "decision"))


def test_settings_without_an_option_go_by_set():
    assert {flag_of((*start, "x")).split()[0] for start in OPEN} == {"--set"}


def test_help_texts_keep_their_brackets(cli):
    assert "torchvision:NAME[@WEIGHTS]" in cli("attack", "--help", env={"COLUMNS": "150"}).stdout


def test_choices_are_shown_and_checked(cli):
    assert "quick|standard|thorough" in cli("attack", "--help", env={"COLUMNS": "150"}).stdout
    assert cli("config", "show", "--profile", "fast").exit_code == 2


def test_the_help_names_every_form_of_the_freeze_grammar():
    said = str(DefendTable.model_fields["freeze"].description).partition(": ")[2].split(", ")
    assert [parse(form).kind for form in said] == [
        "units", "params", "stage", "module", "index", "linear-probe", "auto", "none"
    ]  # fmt: skip
    assert len(said) == GRAMMAR.count("|") + 1
