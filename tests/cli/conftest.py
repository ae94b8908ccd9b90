import pytest

from mi_audit.cli.main import app


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run the program in an empty folder with nothing of the user's."""
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "MI_AUDIT_CONFIG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MI_AUDIT_CACHE_DIR", str(tmp_path / "cache"))

    def run(*words, **more):
        return CliRunner().invoke(app, list(words), prog_name="mi-audit", **more)

    return run
