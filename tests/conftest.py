"""Shared fixtures: a trained digit model and one cache. Types are checked, and the whole suite shares the cores."""

import ast
import functools
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Here and not among the options of pytest, of which the processes that share the tests hear too late. Nothing above may
# import the package.
install_import_hook("mi_audit", "beartype.beartype")
settings.register_profile("together", deadline=None)  # of clock time, which others spend, too
settings.load_profile("together")

MOST = 4  # processes: each has a torch of its own in memory


def pytest_configure() -> None:
    """A shell that starts the tests in the background lets them ignore interrupts, and so what they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """At its end the interpreter looks everywhere, or extensions complain of what they leave."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: looking for garbage there takes a sixth of the time meanwhile, and some of it later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process per core where folders are tested; none for files, which are done before it has started, or one GPU."""
    whole = any(Path(argument.partition("::")[0]).is_dir() for argument in config.args)
    processes = min(cores(), MOST) if whole and not asks_for_gpu(config.option.markexpr) else 0
    return processes if processes > 1 else 0


def asks_for_gpu(marks: str) -> bool:
    """Whether `gpu` stands in the expression of `-m` without being negated."""
    try:
        return _asks(ast.parse(marks.strip(), mode="eval").body, wanted=True)
    except SyntaxError:  # empty, or pytest will say what is wrong with it
        return False


def _asks(node: ast.expr, wanted: bool) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _asks(node.operand, not wanted)
    if isinstance(node, ast.BoolOp):
        return any(_asks(part, wanted) for part in node.values)
    return wanted and isinstance(node, ast.Name) and node.id == "gpu"


def pytest_xdist_setupnodes(specs: list[object]) -> None:
    """The processes, and what they start, share the cores, too."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // len(specs))))


def cores() -> int:
    """Those that this process may use, by its affinity and by the quota of its container."""
    from joblib import cpu_count  # of scikit-learn; here, because most runs do not ask

    return cpu_count()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sklearn import datasets

    from tests.world import digit_model  # what it imports has to be checked

    datasets.load_digits = functools.cache(datasets.load_digits)  # parses a text file, for every run of an audit twice
    return digit_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all processes of the suite: what one of them has trained, the others find."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def nowhere_near_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test forgets to say may reach the user's own cache or settings."""
    monkeypatch.setenv("MI_AUDIT_CACHE_DIR", str(tmp_path / "user-cache"))
    yield
