import json

import pytest
from typer.testing import CliRunner

from mi_audit.audit import importing
from mi_audit.cli.main import app

FACTS = {"file": "out.safetensors", "size": 32, "channels": 3, "parameters": 12, "licence": "research only"}


@pytest.mark.parametrize("accepted", [True, False])
def test_import_prints_the_licence_and_asks_to_read_it_unless_it_was_accepted(monkeypatch, accepted):
    asked = []

    def engine(source, output, *, accepted):
        asked.append((str(source), str(output), accepted))
        return FACTS

    monkeypatch.setattr(importing, "import_generator", engine)
    words = ["import", "a.pkl", "-o", "out.safetensors", *(["--accept-licence"] if accepted else [])]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert asked == [("a.pkl", "out.safetensors", accepted)]
    assert "32 px" in done.stdout and "licence: research only" in done.stdout
    assert ("--accept-licence" in done.stderr) is not accepted
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout) == FACTS
