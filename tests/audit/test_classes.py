import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_audit.audit.classes import select_classes
from mi_audit.core.errors import ConfigError


def test_the_grammar_names_classes_in_ascending_order():
    assert select_classes("all", 4, "") == (0, 1, 2, 3)
    assert select_classes("0-2", 4, "") == (0, 1, 2)
    assert select_classes("7-9, 3,0", 10, "") == (0, 3, 7, 8, 9)


@given(st.integers(1, 60), st.text(max_size=5))
def test_random_draws_distinct_classes_from_the_hash_alone(count: int, text: str):
    drawn = select_classes(f"random:{count}", 60, text)
    assert len(set(drawn)) == count and set(drawn) <= set(range(60))
    assert drawn == select_classes(f"random:{count}", 60, text) == tuple(sorted(drawn))


def test_another_hash_draws_other_classes():
    assert select_classes("random:10", 1000, "a") != select_classes("random:10", 1000, "b")


@pytest.mark.parametrize("spec", ["0-9", "9", "random:0", "random:6", "3-1", "x", "", "1,", "-1"])
def test_a_spec_outside_the_classes_or_the_grammar_is_refused(spec: str):
    with pytest.raises(ConfigError, match=r"expected .*got"):
        select_classes(spec, 5, "")
