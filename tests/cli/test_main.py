import os
import subprocess
import sys
from pathlib import Path

import pytest

import mi_audit
from mi_audit.cli.main import hoisted

HEAVY = ("torch", "torchvision", "timm", "scipy", "matplotlib", "sklearn")


def spawn(code_or_words, **more):
    words = [sys.executable, *(["-c", code_or_words] if isinstance(code_or_words, str) else code_or_words)]
    return subprocess.run(words, capture_output=True, text=True, check=False, **more)


def loaded_by(*words):
    code = (
        "import sys\n"
        "from mi_audit.cli.main import app\n"
        "try:\n"
        f"    app({list(words)!r}, prog_name='mi-audit')\n"
        "except SystemExit as stop:\n"
        "    print('code', stop.code, file=sys.stderr)\n"
        f"print('heavy', [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    return spawn(code)


@pytest.mark.parametrize(
    "words", [("--help",), ("--version",), ("attack", "--help"), ("gate", "--help"), ("config", "show")]
)
def test_nothing_heavy_is_imported_to_answer(words, tmp_path):
    done = loaded_by(*words)
    assert "heavy []" in done.stderr, done.stderr


def test_gate_and_report_import_no_torch(tmp_path):
    from mi_audit.store.results import write_result
    from tests.report.sample import audit

    write_result(tmp_path / "result.json", audit())
    for words in (
        ("gate", str(tmp_path), "--fail-on", "attack_acc1 > 0.9"),
        ("report", str(tmp_path), "-f", "markdown"),
    ):
        done = loaded_by(*words)
        assert "heavy []" in done.stderr, done.stderr


def test_help_starts_at_once():
    def seconds():
        """Of the processor, which others that are at work do not count in."""
        start = os.times()
        spawn(["-m", "mi_audit.cli.main", "--help"])
        end = os.times()
        return end.children_user + end.children_system - start.children_user - start.children_system

    assert 0 < min(seconds() for _ in range(2)) < 0.5


def test_version(cli):
    done = cli("--version")
    assert (done.exit_code, done.stdout) == (0, f"mi-audit {mi_audit.__version__}\n")


def test_help_shows_every_command_and_the_exit_codes(cli):
    text = cli("--help").stdout
    commands = ("attack", "defend", "resume", "demo", "gate", "report", "compare", "list", "info", "inspect", "doctor")
    assert all(f" {name} " in text for name in commands)
    assert "5 inconclusive" in text


@pytest.mark.parametrize("words", [("atack",), ("attack", "m", "--nope"), ("gate",)])
def test_usage_errors_exit_2(cli, words):
    done = cli(*words)
    assert done.exit_code == 2
    assert not done.stdout


def test_global_options_may_stand_anywhere():
    words = ["attack", "m", "-q", "--log-file", "x.log", "--seeds", "3", "-v", "--log-file=y", "--", "-q"]
    assert hoisted(words) == [
        "-q",
        "--log-file",
        "x.log",
        "-v",
        "--log-file=y",
        "attack",
        "m",
        "--seeds",
        "3",
        "--",
        "-q",
    ]


def test_a_global_option_without_its_value_is_a_usage_error(cli):
    assert cli("config", "show", "--log-file").exit_code == 2


def test_the_log_file_has_the_command_and_the_traceback(cli, tmp_path):
    assert cli("gate", "nowhere", "--log-file", "audit.log").exit_code == 3
    text = (tmp_path / "audit.log").read_text()
    assert "Traceback" in text
    assert "NothingToAudit" in text


def test_a_log_file_that_cannot_be_written_exits_2(cli, tmp_path):
    done = cli("config", "show", "--log-file", str(tmp_path))
    assert done.exit_code == 2
    assert "expected a log file that can be written" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device of a disk that is always full")
def test_a_log_file_on_a_full_disk_costs_the_log_and_nothing_else(cli):
    plain, done = cli("config", "show"), cli("config", "show", "--log-file", "/dev/full")
    assert done.exit_code == 0 and done.stdout == plain.stdout
    assert done.stderr == "warning: nothing more is written to the log file /dev/full: No space left on device\n"
    failed = cli("gate", "nowhere", "--log-file", "/dev/full")
    assert failed.exit_code == 3
    assert [line.partition(":")[0] for line in failed.stderr.splitlines()] == ["warning", "error"]
