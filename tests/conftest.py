"""Shared fixtures: a trained digit model and one cache for the whole session."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import digit_model


def pytest_configure() -> None:
    """A shell that starts the tests in the background lets them ignore interrupts, and so what they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def nowhere_near_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test forgets to say may reach the user's own cache or settings."""
    monkeypatch.setenv("MI_AUDIT_CACHE_DIR", str(tmp_path / "user-cache"))
    yield
