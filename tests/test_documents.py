import importlib.util
import os
import re
import runpy
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from mi_audit.audit import catalogue, registry
from mi_audit.audit.expression import parse
from mi_audit.audit.gate import MODEL_METRICS
from mi_audit.audit.settings_sources import from_file
from mi_audit.audit.settings_tables import Settings
from mi_audit.cli.main import app
from mi_audit.core.run import Run
from mi_audit.store.targets import new_model, save_model
from tests import documents, toy
from tests.documents import PAGES, ROOT

INSTALL = [
    "python -m pip install -c constraints.txt . && mi-audit demo",
    "python -m pip install -c constraints.txt '.[test]' && python -m pytest -q",
]
COMMANDS = [(documents.name_of(page), words) for page in PAGES for words in documents.commands(page)]
UsageError = typer.BadParameter.__base__
TOMLS = sorted((ROOT / "examples").glob("*.toml"))
SCRIPTS = ("audit.py", "freeze_curve.py", "query_target.py")


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_commands_in_documents_are_accepted_by_the_program(page, words):
    _parse(words, complete=len(words) > 2)


def test_the_check_of_commands_notices_wrong_ones():
    for wrong in (
        ["atack", "x"],
        ["attack", "x", "--freeze", "80%"],
        ["report", "x", "-F", "html"],
        ["generator", "fit"],
    ):
        with pytest.raises((UsageError, AssertionError)):
            _parse(wrong, complete=True)


def _parse(words: list[str], *, complete: bool) -> None:
    """Resolve the subcommand and its options without running anything; incomplete commands may lack arguments."""
    command = typer.main.get_command(app)
    context = typer.Context(command)
    words = [word for word in words if word not in ("--version", "--help")]
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, f"expected one of {', '.join(command.commands)}, got {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    if words or (complete and not hasattr(command, "commands")):
        command.make_context("mi-audit", words, parent=context, resilient_parsing=not complete)


def _options(command) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(_options, getattr(command, "commands", {}).values()))


SOURCES = sorted([*(ROOT / "mi_audit").rglob("*.py"), *(ROOT / "examples").iterdir()])


@pytest.mark.parametrize("file", [file for file in SOURCES if file.is_file()], ids=documents.name_of)
def test_options_named_in_messages_exist(file):
    known = _options(typer.main.get_command(app)) | {"--help", "--version"}
    foreign = {"--map-root-user", "--net", "--no"}  # of unshare; the start of --no-OPTION
    source = file.read_text()
    known |= set(re.findall(r'add_argument\("(--[a-z-]+)"', source))  # an example's own
    named = re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", source)
    assert set(named) <= known | foreign, f"no such option: {', '.join(sorted(set(named) - known - foreign))}"


def _measured() -> set[str]:
    return {name for metric in registry.metrics().values() for name in metric.names} | {"target_acceptance"}


def test_gate_rules_in_documents_can_be_read_and_name_known_metrics():
    rules = [rule for _, words in COMMANDS for flag, rule in pairwise(words) if flag == "--fail-on"]
    rules += [rule["when"] for table in _tomls() for rule in table.get("gate", [])]
    assert len(rules) > 5
    assert {reference.metric for rule in rules for reference in parse(rule).references()} <= _measured() | set(
        MODEL_METRICS
    )


def test_documents_name_the_metrics_that_are_measured():
    report, gates = ((ROOT / "docs" / name).read_text() for name in ("reading-a-report.md", "gates-and-ci.md"))
    for name in _measured():
        assert f"`{name}`" in report and f"`{name}`" in gates


def _tomls():
    blocks = [block.text for page in PAGES for block in documents.blocks(page) if block.language == "toml"]
    tables = [tomllib.loads(text) for text in [*blocks, *(file.read_text() for file in TOMLS)]]
    return [table for table in tables if "project" not in table]


def test_settings_in_documents_are_valid():
    for table in _tomls():
        Settings.model_validate(table)


@pytest.mark.parametrize("file", TOMLS, ids=lambda file: file.name)
def test_example_files_are_valid(file):
    values = from_file(file).values
    for attack, name in ((key[1], key[2]) for key in values if key[0] == "attacks"):
        assert name in {field for field in registry.attacks()[attack].__dataclass_fields__}
    for prior, name in ((key[1], key[2]) for key in values if key[0] == "priors"):
        assert name in {field for field in registry.priors()[prior].__dataclass_fields__}


@pytest.mark.parametrize("page", PAGES, ids=documents.name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", documents.prose(page)):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{target} does not exist"
        assert not anchor or anchor in documents.anchors(other), f"{target}: no such heading"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or f"\n{page.stem}\n" in index


def test_the_readme_lists_the_methods_there_are():
    expected = catalogue.markdown().strip()
    assert documents.between(ROOT / "README.md", "methods") == expected, f"put this between the markers:\n{expected}"


def test_the_readme_shows_the_end_of_the_demo():
    shown = documents.between(ROOT / "README.md", "sample")
    wanted = ("GMI", "PPA", "Control", "Steps taken", "Took")
    assert all(word in shown for word in wanted), "paste what `mi-audit demo` prints at its end"


def test_the_configuration_page_lists_all_settings():
    expected = documents.settings_tables()
    shown = documents.between(ROOT / "docs" / "configuration.md", "settings")
    assert shown == expected, f"put this between the markers:\n{expected}"


def test_the_readme_and_the_checks_install_the_same_way():
    readme, checks = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for line in INSTALL:
        assert line in readme
        for command in line.split(" && "):
            assert f"{command}\n" in checks or f"{command} --out" in checks
    assert checks.rstrip().endswith(INSTALL[1].split(" && ")[1])


def test_no_network_address_of_a_package_index_is_written_down():
    for file in [*PAGES, ROOT / "constraints.txt", ROOT / ".ci" / "run", ROOT / "pyproject.toml"]:
        assert not re.search(r"--(extra-)?index-url|--find-links|pypi\.org|download\.pytorch\.org", file.read_text())


def test_constraints_are_sorted_pins_without_duplicates():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0].lower() for line in lines]
    assert names == sorted(set(names)) and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_scripts_are_short_and_documented(name):
    text = (ROOT / "examples" / name).read_text()
    assert text.count("\n") < 40
    compile(text, name, "exec")
    assert f"examples/{name}" in (ROOT / "docs" / "python-api.md").read_text()


def test_the_audit_example_starts():
    done = subprocess.run(
        [sys.executable, "-c", "import runpy; runpy.run_path('examples/audit.py', run_name='__main__')", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0 and "private" in done.stdout


def test_the_example_that_queries_a_target_runs(tmp_path, monkeypatch, capsys):
    model = new_model("built-in:cnn", num_classes=3, channels=3, size=32, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0)
    save_model(tmp_path / "model.safetensors", model, {})
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    monkeypatch.setattr(
        sys, "argv", ["query_target.py", str(tmp_path / "model.safetensors"), str(tmp_path / "red.png")]
    )
    runpy.run_path(str(ROOT / "examples" / "query_target.py"), run_name="__main__")
    assert re.match(r"class [012], probability 0\.\d+, gradient norm [\d.e-]+\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_example_of_freeze_points_runs(tmp_path):
    environment = os.environ | {"MI_AUDIT_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "freeze_curve.py", "80%"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == ["utility", "gmi", "ppa"]


def _example_attack(folder: Path):
    code = next(
        block.text
        for block in documents.blocks(ROOT / "docs" / "adding-an-attack.md")
        if block.language == "python" and "class RandomSearch" in block.text
    )
    file = folder / "random_search.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("random_search", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RandomSearch


def test_the_attack_in_the_documents_works(tmp_path):
    attack = _example_attack(tmp_path)(tries=200, keep=3)
    target, classes = toy.target(), torch.arange(4)
    found = attack.run(target, toy.ToyPrior(), classes, Run())
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert target.labels(found.images).equal(found.labels)
    again = attack.run(toy.target(), toy.ToyPrior(), classes[2:], Run(batch_size=7))
    assert again.images.allclose(found.images[6:])
