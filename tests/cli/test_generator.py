import json
from pathlib import Path

import pytest

FACTS = {"name": "gmi-gan", "trained": True, "settings": {"steps": 5}}


@pytest.fixture
def engine(monkeypatch):
    seen = []
    root = "mi_audit.audit.generators."
    monkeypatch.setattr(root + "train_prior", lambda *given: seen.append(given[:2]) or FACTS)
    monkeypatch.setattr(root + "describe_prior", lambda plan, name: seen.append((plan, name)) or FACTS)
    monkeypatch.setattr(root + "sample_prior", lambda *given: seen.append(given) or FACTS)
    return seen


def test_train_needs_no_model(cli, engine):
    done = cli("generator", "train", "--public", "p", "--profile", "quick", "--set", "priors.gmi-gan.steps=5")
    assert done.exit_code == 0, done.output
    ((plan, name),) = engine
    assert (plan.public, plan.profile, plan.prior_settings, name) == (
        "p",
        "quick",
        {"gmi-gan": {"steps": 5}},
        "gmi-gan",
    )
    assert "steps 5" in done.stdout


def test_info_as_json(cli, engine):
    assert json.loads(cli("generator", "info", "--public", "p", "--prior", "other", "--json").stdout) == FACTS
    assert engine[0][1] == "other"


def test_sample(cli, engine):
    assert cli("generator", "sample", "--public", "p", "--count", "9", "-o", "s.png").exit_code == 0
    assert engine[0][1:] == ("gmi-gan", 9, Path("s.png"))
