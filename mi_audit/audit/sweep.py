"""The same defense with every value of one setting, beside one undefended twin: utility against leakage."""

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mi_audit.audit.defend import check_destination, composition_of, copy_model, run_defense
from mi_audit.audit.gate import failed_jobs
from mi_audit.audit.grids import Grid, option_of, read_grid, substituted
from mi_audit.audit.pareto import Side, Tried, accuracy_change, advise, leakage_change, places, sides
from mi_audit.audit.plan import DefendPlan, Plan
from mi_audit.audit.progress import ProgressSink, Silent
from mi_audit.audit.scene import run_folder_path
from mi_audit.audit.settings import plan_to_json
from mi_audit.core.errors import AuditError, ConfigError, StorageError
from mi_audit.core.report import Comparison
from mi_audit.core.sweep import Sweep, SweepFailure, SweepPoint, TwinPoint
from mi_audit.nn.freezing import parse
from mi_audit.store.drafts import draft_of
from mi_audit.store.files import make_folder, storage_error
from mi_audit.store.results import SWEEP_FILE, write_result
from mi_audit.store.runs import RunFolder

Defend = Callable[[Plan, ProgressSink], Comparison]
MASKING = ("gradient-masking", "deception")  # classes of defenses that can stop an attack without removing anything


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """One value: its run, or why there is none."""

    value: str
    folder: str
    result: Comparison | None
    error: Exception | None

    @property
    def message(self) -> str:
        """Why there is no run; errors that the program did not raise on purpose with their kind."""
        known = isinstance(self.error, AuditError)
        return str(self.error) if known else f"{type(self.error).__name__}: {self.error}"


def run_sweep(plan: Plan, progress: ProgressSink | None = None, defend: Defend = run_defense) -> Sweep:
    """Run the defense of `plan` once for every value of `plan.defend.sweep`, and write `sweep.json`.

    Every value has a run folder of its own below the sweep's. The twin is trained and attacked in the first; the
    others take its weights and finished jobs over. Typing the command again goes on where it was interrupted. A value
    that fails is listed, and the others go on.

    Args:
        plan: What to run.
        progress: Who watches.
        defend: Runs one value.

    Raises:
        AuditError: The grid is wrong, the disk is full, or every value failed: then the error of the first.
    """
    progress = progress or Silent()
    grid = grid_of(plan)
    plans = sweep_plans(plan, grid)
    for one in plans:
        composition_of(one)  # what cannot be built is found before anything is trained
    if plan.defend.save is not None:
        check_destination(plan.defend.save)
    with RunFolder(sweep_folder(plan)) as folder:
        folder.write_plan({"kind": "defend", "plan": plan_to_json(replace(plan, fresh=False))})
        folder.point_latest()
        if plan.fresh:
            _forget(folder.path, grid)
        ran: list[Ran] = []
        for value, name, one in zip(grid.values, grid.folders, plans, strict=True):
            progress.stage(f"{grid.parameter} {value}: {len(ran) + 1} of {len(plans)} values")
            if not grid.changes_the_twin:
                _bring_twin(folder.path, name, [other.folder for other in ran], only=plan.fresh)
            ran.append(_run(value, name, one, progress, defend))
        done = [one for one in ran if one.result is not None]
        if not done and ran[0].error is not None:
            raise ran[0].error
        sweep = summarised(plan, grid, ran)
        write_result(folder.path / SWEEP_FILE, sweep)
        if plan.defend.save is not None:
            _save(sweep, ran, folder.path, plan.defend.save, progress)
        return sweep


def grid_of(plan: Plan) -> Grid:
    """The setting and the values that the plan asks for.

    Raises:
        ConfigError: There is none, or a value cannot be meant.
    """
    if plan.defend.sweep is None:
        raise ConfigError("expected --sweep NAME=VALUE,VALUE, got none; write for example --sweep freeze=40%,80%")
    grid = read_grid(plan.defend.sweep, plan.defend.method)
    for value in grid.values if grid.parameter == "freeze" else ():
        parse(value)
    return grid


def sweep_plans(plan: Plan, grid: Grid) -> tuple[Plan, ...]:
    """The plan of every value: a plan of `defend` in a folder below the sweep's."""
    out = sweep_folder(plan)
    return tuple(
        replace(
            plan,
            defend=substituted(plan.defend, grid.parameter, value),
            out=out / name,
            fresh=False,
            command=_command(plan.command, grid.parameter, value),
        )
        for value, name in zip(grid.values, grid.folders, strict=True)
    )


def sweep_folder(plan: Plan) -> Path:
    """Where a sweep is kept; without --out its name depends on the setting but not on the values, so that more values
    join those that are there."""
    grid = grid_of(plan)
    same = replace(plan.defend, sweep=grid.parameter, tolerance=DefendPlan().tolerance)
    return run_folder_path(replace(plan, defend=same), "sweep")


def summarised(plan: Plan, grid: Grid, ran: list[Ran]) -> Sweep:
    """What came of the values that ran."""
    results = [(one, one.result) for one in ran if one.result is not None]
    pairs = [sides(result) for _, result in results]
    twins = _distinct([(one.value, twin) for (one, _), (twin, _) in zip(results, pairs, strict=True)])
    where = places([*(twin for _, twin in twins), *(defended for _, defended in pairs)])
    tried = [Tried(one.value, twin, after) for (one, _), (twin, after) in zip(results, pairs, strict=True)]
    points = tuple(
        SweepPoint(
            value=one.value,
            folder=one.folder,
            worth=after.worth,
            twin=next(place for place, (values, _) in enumerate(twins) if one.value in values),
            accuracy_change=accuracy_change(twin, after),
            attack_change=leakage_change(twin, after),
            exposure_change=next((c.difference for c in result.changes if c.name == "exposure"), None),
            place=place,
            verdict=result.verdict.outcome if result.verdict else None,
            failed=failed_jobs(result),
        )
        for (one, result), (twin, after), place in zip(results, pairs, where[len(twins) :], strict=True)
    )
    return Sweep(
        command=plan.command,
        parameter=grid.parameter,
        method=plan.defend.method,
        values=grid.values,
        points=points,
        twins=tuple(
            TwinPoint(values=values, worth=twin.worth, place=place)
            for (values, twin), place in zip(twins, where, strict=False)
        ),
        failures=tuple(
            SweepFailure(value=one.value, folder=one.folder, message=one.message) for one in ran if one.error
        ),
        advice=advise(tried, plan.defend.tolerance / 100),
        warnings=tuple(_warnings(plan, [result for _, result in results])),
    )


def _run(value: str, name: str, plan: Plan, progress: ProgressSink, defend: Defend) -> Ran:
    try:
        return Ran(value, name, defend(plan, progress), None)
    except StorageError:
        raise  # a full disk would fail the others alike
    except (AuditError, RuntimeError, ValueError, ArithmeticError) as error:
        failed = Ran(value, name, None, error)
        progress.warn(f"{value}: {failed.message}")
        return failed


def _distinct(twins: list[tuple[str, Side]]) -> list[tuple[tuple[str, ...], Side]]:
    """Twins that are the same models, attacked with the same outcome, once, with the values they belong to."""
    found: dict[object, tuple[list[str], Side]] = {}
    for value, twin in twins:
        key = (tuple(model.sha256 for model in twin.models), twin.leaks)
        found.setdefault(key, ([], twin))[0].append(value)
    return [(tuple(values), twin) for values, twin in found.values()]


def _warnings(plan: Plan, results: list[Comparison]) -> Iterator[str]:
    kinds = {str(result.defense.get("kind", "")) for result in results}
    for kind in sorted(name for name in MASKING if any(name in one for one in kinds)):
        yield (
            f"this defense is of the class {kind}: a lower attack accuracy may only mean that these attacks were "
            "stopped; run its adaptive attack before you trust the front"
        )
    if plan.images == "none" and len(results) > 1:
        yield "--images none removes job files, so the undefended twin was attacked again for every value"
    listed = [found for result in results if isinstance(found := result.defense.get("cautions"), list | tuple)]
    yield from dict.fromkeys(f"to be told with the model, {text}" for found in listed for text in found)
    yield from dict.fromkeys(warning for result in results for warning in result.warnings)


def _command(command: str, parameter: str, value: str) -> str:
    """The command of one value: that of the sweep with the value in the place of the grid."""
    words = iter(shlex.split(command))
    kept: list[str] = []
    for word in words:
        if word in ("--sweep", "--tolerance"):
            next(words, None)
        elif not word.startswith(("--sweep=", "--tolerance=")):
            kept.append(word)
    return shlex.join([*kept, *option_of(parameter, value)]) if kept else ""


def _bring_twin(folder: Path, name: str, ran: list[str], *, only: bool) -> None:
    """Give the run in `folder/name` the twin's weights and all finished jobs of other values.

    The twin of a value in `ran`, which ran just now, is the right one; that of an earlier sweep is taken where there
    is none, unless `only` those are wanted. Weights and jobs are checked against what they must be before they are
    used, so a wrong one does no harm.
    """
    earlier = sorted(path.parent.name for path in folder.glob("*/models") if path.parent.name not in (name, *ran))
    others = [] if only else earlier
    RunFolder(folder / name).close()  # a folder with something in it is no place for a new run, unless it says so
    brought: set[str] = set()
    for donor in [*ran, *others]:
        for weights in sorted((folder / donor / "models").glob("undefended-s*.safetensors")):
            target = folder / name / "models" / weights.name
            sidecar = weights.with_suffix(".json")
            wanted = weights.name not in brought and (donor in ran or not target.exists())
            if wanted and sidecar.is_file():
                brought.add(weights.name)
                _link(sidecar, target.with_suffix(".json"))  # first: no weights are ever without it
                _link(weights, target)
    for donor in [*ran, *others]:
        for job in sorted((folder / donor / "jobs").glob("*.safetensors")):
            target = folder / name / "jobs" / job.name
            if not target.exists():
                _link(job, target)


def _link(source: Path, target: Path) -> None:
    """Put the content of `source` at `target` in one step, sharing the space on disk where the file system can."""
    draft = draft_of(target)
    try:
        make_folder(target.parent)
        try:
            os.link(source, draft)
        except OSError:  # a file system without links
            shutil.copy2(source, draft)
        draft.replace(target)
    except OSError as error:
        raise storage_error("write", target, error) from error
    finally:
        draft.unlink(missing_ok=True)  # renaming one link of a file to another leaves both


def _forget(folder: Path, grid: Grid) -> None:
    """Remove what earlier runs of these values left, so that all is trained and attacked again."""
    for name in grid.folders:
        for part in ("jobs", "images", "models"):
            shutil.rmtree(folder / name / part, ignore_errors=True)


def _save(sweep: Sweep, ran: list[Ran], folder: Path, destination: Path, progress: ProgressSink) -> None:
    """Copy the weights of the recommended value where the user wants them."""
    chosen = next((one for one in ran if one.value == sweep.advice.value), None)
    if chosen is None or chosen.result is None or chosen.result.model is None:
        progress.warn(f"no value is recommended, so nothing was copied to {destination}")
        return
    copy_model(folder / chosen.folder / chosen.result.model, destination)
