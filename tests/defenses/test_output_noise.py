import pytest

from mi_audit.core.defense import Slot
from mi_audit.core.errors import ConfigError
from mi_audit.defenses.output_noise import NoisyOutput
from tests.defenses.released import check_released
from tests.toy import classifier, prototypes

SETTINGS = {"deviation": 0.1, "secret": 7}


def test_one_edit_is_all_it_does():
    defense = NoisyOutput(**SETTINGS)
    assert defense.slots == {Slot.OUTPUT} and defense.kind == "output-side"
    assert list(defense.edits(classifier(), prototypes())) == [
        {"edit": "output", "rule": "output-noise", "deviation": 0.1, "secret": 7}
    ]


def test_an_api_answers_by_it_and_the_weights_do_not():
    check_released(NoisyOutput(**SETTINGS), keeps_labels=False)


def test_refuses_settings_out_of_range():
    with pytest.raises(ConfigError, match=r"expected .* got"):
        NoisyOutput(deviation=-1.0)
