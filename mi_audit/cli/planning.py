"""`plan`: how many people have to be attacked, and how long, before a gate can decide. Needs no model and no torch."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from mi_audit.cli.console import duration
from mi_audit.cli.options import Json
from mi_audit.cli.session import emit_json, stdout
from mi_audit.core.errors import ConfigError

if TYPE_CHECKING:
    from mi_audit.audit.spent import Spent

Row = dict[str, float | int | None]
RATES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.08)  # true shares of the table; those below the threshold are shown
MANY = 100_000  # people from which on their number no longer matters
EXPOSED = 5  # most exposed ones of the second table
NO_TIME = (
    "How long that takes: add --like runs/latest after a run on the same machine, "
    "or see `mi-audit attack ... --classes random:N --dry-run`."
)


def plan(
    threshold: Annotated[float, typer.Option("--threshold", metavar="X", help="Largest share tolerated.")] = 0.10,
    power: Annotated[float, typer.Option("--power", metavar="X", help="Wanted probability to pass.")] = 0.80,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="X", help="True share of exposed people that you expect.")
    ] = None,
    classes_total: Annotated[
        int | None, typer.Option("--classes-total", min=1, metavar="N", help="How many people the model knows.")
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", metavar="X", help="Error rate of the bound.")] = 0.05,
    sensitivity: Annotated[
        float,
        typer.Option("--sensitivity", metavar="X", help="Share of people that the verifier is sure to recognise."),
    ] = 1.0,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="RUN", help="Finished run on the same machine, to say how long it takes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how many people must be attacked, and how long it takes, before --policy audit-v1 can pass a model.

    A bound on n people certifies a share below the threshold only if few enough of them
    are exposed. The table says how many are needed, by the true share, so that a model
    that deserves it passes with the wanted probability. With --like it also says the time,
    from what each person took in that run: its attacks, controls, seeds and measuring.

    [bold]Examples[/bold]

      mi-audit plan --threshold 0.1 --power 0.8
      mi-audit plan --threshold 0.05 --rate 0.02 --classes-total 530
      mi-audit plan --threshold 0.1 --like runs/latest
    """
    for name, value in (("--threshold", threshold), ("--power", power), ("--alpha", alpha)):
        _check(name, value, 0 < value < 1, "above 0 and below 1")
    _check("--sensitivity", sensitivity, 0 < sensitivity <= 1, "above 0 and at most 1")
    if rate is not None:
        _check("--rate", rate, 0 <= rate < 1, "at least 0 and below 1")
    limit, total = threshold * sensitivity, classes_total if (classes_total or 0) <= MANY else None
    needed = _by_rate(limit, RATES if rate is None else (rate,), power, total, alpha)
    certified = _by_exposed(limit, total, alpha)
    known = None if like is None else _spent(like)
    if known is not None:
        for row in (*needed, *certified):
            row["seconds"] = None if row["people"] is None else round(known.expected(int(row["people"])), 1)
    if as_json:
        emit_json({
            "threshold": threshold, "power": power, "alpha": alpha, "sensitivity": sensitivity,
            "classes_total": classes_total, "by_rate": needed, "by_exposed": certified,
            "like": None if known is None else {
                "run": like, "device": known.device, "people": known.people,
                "seconds_per_person": round(known.per_person, 3), "seconds_once": round(known.once, 3),
            },
        })  # fmt: skip
        return
    among = f" of {classes_total}" if classes_total else ""
    _show(f"People{among} to attack, to pass with probability {power:g}", needed, limit)
    _show(f"People{among} that certify a share below {threshold:g}", certified, limit)
    stdout().print(Text(NO_TIME if known is None else _basis(known), style="dim"), soft_wrap=True)


def _spent(run: str) -> "Spent":
    """What the run took that the time is foretold from."""
    from mi_audit.audit.spent import spent
    from mi_audit.cli.finish import read_timing
    from mi_audit.store.latest import find_run
    from mi_audit.store.results import read_result

    folder = find_run(run)
    return spent(read_result(folder), read_timing(folder))


def _basis(known: "Spent") -> str:
    return (
        f"Times are for the settings and the machine of that run ({known.device}): {duration(known.once)} once and "
        f"{known.per_person:.3g} s for each of its {known.people} people."
    )


def _check(name: str, value: float, good: bool, wanted: str) -> None:
    if not good:
        raise ConfigError(f"expected {name} {wanted}, got {value:g}; write for example {name} 0.1")


def _by_rate(limit: float, rates: tuple[float, ...], power: float, total: int | None, alpha: float) -> list[Row]:
    from mi_audit.nn.exact import pass_power, sample_size

    rows: list[Row] = []
    for rate in rates:
        if rate >= limit and len(rates) > 1:
            continue
        found = sample_size(limit, rate, power, total, alpha)
        people, allowed = found or (None, None)
        passes = None if people is None else round(pass_power(people, limit, rate, total, alpha), 4)
        rows.append({"true_share": rate, "people": people, "exposed_allowed": allowed, "passes": passes})
    return rows


def _by_exposed(limit: float, total: int | None, alpha: float) -> list[Row]:
    from mi_audit.nn.exact import required

    return [{"exposed": exposed, "people": required(exposed, limit, total, alpha)} for exposed in range(EXPOSED + 1)]


def _show(title: str, rows: list[Row], limit: float) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold dim", pad_edge=False)
    for name in rows[0]:
        table.add_column("time" if name == "seconds" else name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(Text(_shown(name, value)) for name, value in row.items()))
    stdout().print(Text(title, style="bold"))
    stdout().print(table)
    if any(row["people"] is None for row in rows):
        stdout().print(Text(f"none: no number is enough so near to {limit:g}, or there are too few people", "dim"))
    stdout().print()


def _shown(name: str, value: float | int | None) -> str:
    if value is None:
        return "none"
    if name == "seconds":
        return duration(value)
    return f"{value:.1%}" if name in ("true_share", "passes") else f"{value}"
