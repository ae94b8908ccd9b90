"""Do the intervals cover, and how often does the gate pass a model it should not? Prints tables in Markdown.

    python examples/simulate_gates.py > statistics.md

Everything is drawn from seeded generators, so the figures repeat. It takes less than a minute on one core.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import special

from mi_audit.audit.regression import Pairs, _difference
from mi_audit.nn import exact
from mi_audit.nn.exposure_bounds import sequential_bounds
from mi_audit.nn.intervals import crossed_bootstrap
from mi_audit.nn.sequential import evidence_above, evidence_below

SEED, RUNS, BOOTSTRAPS = 7, 4000, 300
TAU, ALPHA = 0.10, 0.05
STEP, CHECKED = 32, 4  # people between two looks of a sequential run; runs that are judged by the gate's own code, too
RATES = (0.0, 0.02, 0.05, 0.10, 0.15, 0.20)
CORRELATED = (  # true share, correlation of two images of one person, people, images of each
    (0.05, 0.5, 50, 5), (0.05, 0.5, 300, 5), (0.10, 0.5, 100, 5), (0.10, 0.8, 100, 50), (0.02, 0.7, 100, 10),
)  # fmt: skip


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print one table; shares as percent."""
    print(f"\n## {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(f'{100 * v:.1f}' if isinstance(v, float) else str(v) for v in row)} |")


def clopper_pearson_upper(exposed: np.ndarray, attacked: int) -> np.ndarray:
    return np.where(exposed < attacked, special.betaincinv(exposed + 1, np.maximum(attacked - exposed, 1), 0.95), 1.0)


def correlated(rng: np.random.Generator) -> Iterable[tuple[object, ...]]:
    """Coverage of one-sided 95 % upper bounds when the images of one person resemble each other."""
    for theta, icc, people, images in CORRELATED:
        weight = 1 / icc - 1
        shares = rng.beta(theta * weight, (1 - theta) * weight, (RUNS, people))
        hits = rng.binomial(images, shares)
        pooled = clopper_pearson_upper(hits.sum(1), people * images) >= theta
        bootstrap = [
            crossed_bootstrap(row[None] / images, 0.90, 1000, seed)[1] >= theta
            for seed, row in enumerate(hits[:BOOTSTRAPS])
        ]
        single = clopper_pearson_upper((rng.random(shares.shape) < shares).sum(1), people) >= theta
        setting = f"{theta:.0%}, {icc}, {people} x {images}"
        yield setting, float(pooled.mean()), float(np.mean(bootstrap)), float(single.mean())


def finite(rng: np.random.Generator) -> Iterable[tuple[object, ...]]:
    """Coverage of both one-sided 95 % bounds of a finite set; of the binomial bound beside them."""
    for total, attacked in ((100, 25), (100, 77), (300, 83), (530, 98), (530, 300)):
        for marked in (total // 50, total // 10, total // 4):
            drawn = rng.hypergeometric(marked, total - marked, attacked, RUNS)
            seen, place = np.unique(drawn, return_inverse=True)
            upper = np.array([exact.upper_share(int(x), attacked, total) for x in seen])[place]
            lower = np.array([exact.lower_share(int(x), attacked, total) for x in seen])[place]
            loose = clopper_pearson_upper(drawn, attacked)
            theta = marked / total
            covered = (float(np.mean(part)) for part in (upper >= theta, lower <= theta, loose >= theta))
            yield f"{attacked} of {total}, {marked} exposed", *covered


def fixed(rng: np.random.Generator) -> Iterable[tuple[object, ...]]:
    """Verdicts of the exact bounds after a fixed number of people."""
    for total, attacked in ((None, 30), (None, 100), (None, 300), (530, 98), (530, 300), (300, 300)):
        passing = exact.most_passing(attacked, TAU, total)
        failing = exact.fewest_failing(attacked, TAU, total)
        for rate in RATES:
            marked = round(rate * (total or 0))
            hits = rng.hypergeometric(marked, total - marked, attacked, RUNS) if total else None
            hits = rng.binomial(attacked, rate, RUNS) if hits is None else hits
            among = f" of {total}" if total else ""
            yield f"{attacked}{among}", f"{rate:.0%}", float(np.mean(hits <= passing)), float(np.mean(hits >= failing))


def first(crossed: np.ndarray) -> np.ndarray:
    """Number of people after which it first happened; one more than there are where it never did."""
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, crossed.shape[1] + 1)


def sequential(rng: np.random.Generator) -> Iterable[tuple[object, ...]]:
    """Verdicts while counting, up to 500 people or everybody; and of peeking at the fixed bound after everybody."""
    limit, passing = -np.log(ALPHA), np.array([exact.most_passing(n, TAU) for n in range(1, 501)])
    for total in (None, 300):
        cap, runs = total or 500, RUNS // 2
        for rate in RATES:
            people = (
                rng.random((runs, cap)) < rate
                if total is None
                else rng.permuted(np.tile(np.arange(total) < round(rate * total), (runs, 1)), axis=1)
            ).astype(float)
            passed = first(evidence_below(people, TAU, total) >= limit)
            failed = first(evidence_above(people, TAU, total) >= limit)
            peeked = (np.cumsum(people, axis=1) <= passing[:cap]).any(axis=1) if total is None else None
            seen = np.minimum(np.minimum(passed, failed), cap)
            yield (
                total or "many", f"{rate:.0%}", float(np.mean(passed < failed)), float(np.mean(failed < passed)),
                f"{seen.mean():.0f}", f"{np.median(seen):.0f}", "" if peeked is None else float(peeked.mean()),
            )  # fmt: skip


def in_steps(rng: np.random.Generator) -> Iterable[tuple[object, ...]]:
    """Verdicts of a sequential run, which looks after every 32 people and stops attacking once the bounds decide.

    The last look is at all 300 planned ones: a census when there are no more, else still by the evidence.
    """
    limit, planned, runs = -np.log(ALPHA), 300, RUNS // 2
    for total in (300, 530):
        for rate in (*RATES[:4], 0.11, *RATES[4:]):
            marked = np.tile(np.arange(total) < round(rate * total), (runs, 1))
            people = rng.permuted(marked, axis=1)[:, :planned].astype(float)
            passed = first(evidence_below(people, TAU, total) >= limit)
            failed = first(evidence_above(people, TAU, total) >= limit)
            state, seen = np.full(runs, "CONTINUE"), np.full(runs, planned)
            for look in (*range(STEP, planned, STEP), planned):
                hits, going = people[:, :look].sum(1), state == "CONTINUE"
                within = hits <= TAU * look + 1e-9
                passing, failing = (passed <= look) & (failed > look), (failed <= look) & (passed > look)
                if look == total:
                    passing, failing = np.full(runs, True), np.full(runs, True)
                now = np.where(passing & within, "PASS", np.where(failing & ~within, "FAIL", "CONTINUE"))
                state, seen = np.where(going, now, state), np.where(going, look, seen)
                for row in np.flatnonzero(going)[:CHECKED]:
                    outcomes = tuple(people[row, :look])
                    if sequential_bounds((outcomes, outcomes), total, TAU, ALPHA, 1.0).state != now[row]:
                        raise AssertionError(f"run {row} of {rate:.0%} in {total} after {look} people")
            shares = (float(np.mean(state == verdict)) for verdict in ("PASS", "FAIL"))
            yield f"{planned} of {total}", f"{rate:.0%}", *shares, f"{seen.mean():.0f}", f"{np.median(seen):.0f}"


def changes(rng: np.random.Generator) -> Iterable[tuple[object, ...]]:
    """The regression rule and the interval of the change, when some people change sides."""
    for people in (60, 100, 300):
        for worse, better in ((0.0, 0.0), (0.01, 0.01), (0.05, 0.05), (0.15, 0.15), (0.08, 0.03), (0.15, 0.05)):
            drawn = rng.multinomial(people, (worse, better, 1 - worse - better), RUNS)[:, :2]
            kinds, count = np.unique(drawn, axis=0, return_counts=True)
            alarm = [exact.mcnemar_more(int(less), int(more)) < ALPHA for more, less in kinds]
            pairs = [Pairs(count=people, only_before=int(less), only_after=int(more)) for more, less in kinds]
            intervals = [_difference(pair).interval for pair in pairs]
            covered = [one is not None and one.low <= worse - better <= one.high for one in intervals]
            shares = (float(np.average(part, weights=count)) for part in (alarm, covered))
            yield people, f"{worse:.0%}", f"{better:.0%}", *shares


def with_control(rng: np.random.Generator) -> Iterable[tuple[object, ...]]:
    """Verdicts of audit-v1 when prior and verifier find some people by themselves; leak and floor are independent."""
    for attacked in (100, 300):
        passing, failing = exact.most_passing(attacked, TAU), exact.fewest_failing(attacked, TAU)
        quiet = exact.most_passing(attacked, TAU / 2)
        for leak, floor in ((0.0, 0.005), (0.0, 0.05), (0.0, 0.15), (0.05, 0.01), (0.15, 0.01), (0.30, 0.01)):
            control = rng.random((RUNS, attacked)) < floor
            found = (rng.random((RUNS, attacked)) < floor) | (rng.random((RUNS, attacked)) < leak)
            exposed, more, less = found.sum(1), (found & ~control).sum(1), (control & ~found).sum(1)
            significant = special.bdtr(less, np.maximum(more + less, 1), 0.5) < ALPHA
            trusted = control.sum(1) <= quiet
            passed = float(np.mean((exposed <= passing) & trusted))
            failed = float(np.mean((exposed >= failing) & significant & trusted))
            without = float(np.mean(exposed >= failing))
            yield attacked, f"{leak:.0%}", f"{floor:.1%}", passed, failed, 1 - passed - failed, without


def main() -> None:
    rng = np.random.default_rng(SEED)
    table(
        "Images of one person are not independent",
        (
            "share, correlation, people x images",
            "exact, pooled images",
            "bootstrap over people",
            "exact, one per person",
        ),
        correlated(rng),
    )
    table("A finite set of people", ("drawn", "upper bound", "lower bound", "binomial upper bound"), finite(rng))
    table("Verdicts after a fixed number of people", ("people", "true share", "PASS", "FAIL"), fixed(rng))
    table(
        "Verdicts while counting",
        ("out of", "true share", "PASS", "FAIL", "mean people", "median people", "PASS when peeking naively"),
        sequential(rng),
    )
    table(
        "Verdicts beside a control",
        ("people", "leak", "floor", "PASS", "FAIL", "INCONCLUSIVE", "FAIL without the control"),
        with_control(rng),
    )
    table(
        "Verdicts of a run that stops early",
        ("planned", "true share", "PASS", "FAIL", "mean people", "median people"),
        in_steps(rng),
    )
    table(
        "Regressions",
        ("people", "exposed now only", "exposed before only", "FAIL", "interval covers the change"),
        changes(rng),
    )


if __name__ == "__main__":
    main()
