import pytest

from mi_audit.audit import catalogue
from mi_audit.core.errors import ConfigError


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_every_method_has_a_row_with_a_summary(kind):
    rows = catalogue.entries(kind)
    assert rows
    for row in rows:
        assert {"name", "access", "prior", "paper"} <= row.keys()
        assert row["summary"][0].isupper() or kind == "metrics"


def test_tags_are_access_and_prior():
    assert catalogue.attack_tags()["gmi"] == {"white-box", "gmi-gan"}


def test_description_has_the_help_of_every_documented_setting():
    entry = catalogue.describe("gmi")
    assert entry["settings"]["steps"] == 1500
    assert entry["help"]["steps"].startswith("Gradient steps per latent")
    assert entry["help"].keys() == entry["settings"].keys()


def test_a_kind_narrows_the_search():
    assert catalogue.describe("prior:gmi-gan")["type"] == "prior"
    with pytest.raises(ConfigError, match="got 'prior:gmi'; did you mean 'gmi-gan'"):
        catalogue.describe("prior:gmi")


def test_the_markdown_names_every_attack_and_defense():
    text = catalogue.markdown()
    for kind in ("attacks", "defenses", "metrics"):
        assert all(f"| `{row['name']}` |" in text for row in catalogue.entries(kind))
