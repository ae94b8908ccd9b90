import logging.config
import re
import subprocess
import sys

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import mi_audit
from tests.documents import ROOT, name_of

PACKAGE = ROOT / "mi_audit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PLUGINS = [
    file
    for kind in ("attacks", "defenses", "metrics", "priors")
    for file in sorted((PACKAGE / kind).glob("*.py"))
    if file.name != "__init__.py"
]
VAGUE = re.compile(r"(^|_)(utils?|helpers?|managers?|handlers?|common|misc|base)(_|$)")
FORBIDDEN = {
    "breaks the shapes": r"from __future__ import annotations",
    "catches everything": r"except (Base)?Exception\b|except:",
    "ties to one device": r"\.cuda\(|[\"']cuda:0[\"']|DataParallel\(",
    "loads what does not fit": r"load_state_dict\([^)]*strict=False",
    "is unfinished": r"\b(TODO|FIXME|XXX)\b|NotImplementedError\(",
    "names a place on somebody's disk": r"/(home|root|work|Users|mnt)/",
    "runs text as code": r"(?<![\w.])(eval|exec)\(",
}
ADDRESSES = re.compile(
    r"https?://(?!(arxiv|json-schema|doi|owasp|atlas\.mitre)\.org|openreview\.net|www\.w3\.org|docs\.oasis-open\.org|git-lfs)"
)


def test_imports_keep_to_the_floors(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)  # it would silence our loggers in later tests
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("file", PLUGINS, ids=name_of)
def test_every_method_has_a_test_file(file):
    assert (ROOT / "tests" / file.parent.name / f"test_{file.name}").is_file()


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_sources_keep_the_house_rules(file):
    text = file.read_text()
    assert text.count("\n") <= 300
    assert not VAGUE.search(file.stem)
    for why, pattern in FORBIDDEN.items():
        assert not (found := re.search(pattern, text)), f"{found[0]!r} {why}"


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_sources_name_no_address_but_of_papers_and_schemas(file):
    assert not (found := ADDRESSES.search(file.read_text())), f"{found}"


def test_packages_export_nothing_but_the_three_functions():
    empty = [file for file in SOURCES if file.name == "__init__.py" and file.parent not in (PACKAGE, PACKAGE / "core")]
    assert all(not file.read_text().strip() for file in empty)
    assert set(mi_audit.__all__) == {"__version__", "load_target", "run_attack", "run_defense"}
    assert all(getattr(mi_audit, name) is not None for name in mi_audit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        mi_audit.load  # noqa: B018


def test_the_package_loads_no_torch_by_itself():
    code = "import sys, mi_audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_licence_is_apache_2():
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
