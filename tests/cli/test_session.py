import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mi_audit.cli.console import watching
from mi_audit.cli.session import Boundary, Session, emit_json
from mi_audit.core import errors


def leave(error, session=None):
    with pytest.raises(typer.Exit) as caught, Boundary(session or Session()):
        raise error
    return caught.value.exit_code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.AuditError("x"), 4),
        (errors.ConfigError("x"), 2),
        (errors.NothingToAudit("x"), 3),
        (errors.TargetError("x"), 3),
        (errors.DataError("x"), 3),
        (errors.Diverged("x"), 4),
        (errors.StorageError("x"), 4),
        (KeyError("x"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_code(error, code):
    assert leave(error) == code


def test_an_error_is_one_line_without_a_traceback(capsys):
    leave(errors.DataError("expected a folder,\n got none"))
    assert capsys.readouterr() == ("", "error: expected a folder, got none\n")


def test_long_errors_are_not_wrapped_and_brackets_survive(capsys):
    leave(errors.DataError("[run] " + "x" * 300))
    assert capsys.readouterr().err == "error: [run] " + "x" * 300 + "\n"


def test_the_traceback_comes_with_v(capsys):
    leave(errors.DataError("expected A"), Session(verbosity=1))
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_unexpected_error_is_called_a_bug(capsys):
    leave(ZeroDivisionError("division by zero"))
    text = capsys.readouterr().err
    assert text.startswith(
        "error: this is a bug in mi-audit: ZeroDivisionError: division by zero (test_session.py, line "
    )
    assert text.count("\n") == 1


def test_json_mode_prints_one_error_document(capsys):
    leave(errors.TargetError("expected A"), Session(json=True))
    document = {"error": {"kind": "TargetError", "message": "expected A"}, "exit_code": 3}
    assert json.loads(capsys.readouterr().out) == document


def test_an_interrupt_says_how_to_resume(capsys):
    leave(KeyboardInterrupt(), Session(run=Path("runs/x")))
    assert "`mi-audit resume runs/x` or type the command again" in capsys.readouterr().err


def test_an_interrupt_before_the_run_says_that_nothing_was_written(capsys):
    leave(KeyboardInterrupt())
    assert "nothing was written" in capsys.readouterr().err


def test_termination_is_an_interrupt_and_the_old_answer_comes_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as caught, Boundary(Session(run=Path("runs/x"))):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_disk_that_fills_up_during_a_run_costs_the_log_only(tmp_path, capsys, monkeypatch):
    session = Session(log_file=tmp_path / "audit.log", verbosity=-1)
    with watching(session) as sink:
        sink.note("one")
        monkeypatch.setattr(Path, "open", full)
        sink.note("two")
        sink.stage("three")
    monkeypatch.undo()
    assert (tmp_path / "audit.log").read_text().endswith(" one\n")
    assert capsys.readouterr().err.count("nothing more is written to the log file") == 1


def full(*_given, **_named):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_file_in_a_wrong_place_is_refused_but_not_one_on_a_full_disk(tmp_path, capsys, monkeypatch):
    with pytest.raises(errors.ConfigError, match=r"Is a directory on .*; choose another --log-file"):
        Session(log_file=tmp_path).start_logging()
    monkeypatch.setattr(Path, "open", full)
    Session(log_file=tmp_path / "audit.log").start_logging()
    assert "No space left on device" in capsys.readouterr().err


def test_an_exit_passes_through():
    with pytest.raises(typer.Exit) as caught, Boundary(Session()):
        raise typer.Exit(5)
    assert caught.value.exit_code == 5


def test_json_is_one_document_with_paths_as_text(capsys):
    emit_json({"path": Path("a/b"), "name": "é"})
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "name": "é"}


def test_a_closed_pipe_is_quiet():
    program = f"{sys.executable} -m mi_audit.cli.main config schema"
    done = subprocess.run(
        ["bash", "-c", f"{program} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")
