from mi_audit.core.defense import Slot
from mi_audit.defenses.label_only import LabelOnlyOutput
from tests.defenses.released import check_released
from tests.toy import classifier, prototypes


def test_one_edit_is_all_it_does():
    defense = LabelOnlyOutput()
    assert defense.slots == {Slot.OUTPUT} and defense.kind == "output-side"
    (edit,) = defense.edits(classifier(), prototypes())
    assert edit == {"edit": "output", "rule": "label-only"}


def test_an_api_answers_by_it_and_the_weights_do_not():
    check_released(LabelOnlyOutput())
