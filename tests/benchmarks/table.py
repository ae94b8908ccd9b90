"""The rows of a benchmark as a table in the terminal, and as a page of the documentation with the goals beside."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
PRECISIONS = {"32": "single", "bf16": "bfloat16"}

PAGE = """# Performance

How much faster the attacks of this package are than plain loops in the shape of the published code, at equal work and
equal results. Made from rows of `python -m tests.benchmarks`; edit nothing here, run it again.

{machine}

## Speed

A ratio is the median over repetitions of the seconds of the plain loop over the seconds of the engine, with the least
and the largest; candidates take turns, each repetition starting with another one, and the first call does not count.
In bfloat16 it is that of a long search: nine steps in ten are timed in bfloat16, one is in single precision, and the
comparison that a search begins with, sixteen passes of one image, does not count. Where that comparison refuses
bfloat16 on the networks that are timed, the row is that of single precision, which the search is then done in.

{ratios}

The goal is that of the hardware the row was measured on. A row whose results are worse than the plain loop's says so
and proves nothing.

## Equal results

{quality}

The cosine is that of the first gradient with the plain loop's, median and least over latents. `alone` is the median
difference of that gradient, over its norm, when every image has a batch of its own, and the median over latents of the
largest difference that this makes to where the first step ends; 0 is equality to the bit. Loss
is the mean cross-entropy of the final images on the target, scored in single precision; rate is the share that
another network takes for its class. After `/` is the plain loop's; worse by more than two standard errors over classes
is not equal. In single precision gradients and steps have to agree; in bfloat16 losses and rates have to.

## Time to quality

Seconds until a run reaches nine tenths of the plain loop's final rate, at a quarter, a half or all of the steps; the
engine also with `--early-stop`, whose seconds and rate are beside those of all steps. Runs of so few images differ by
chance, and a search of few steps has little to leave out.

{course}

## Use of the hardware

{hardware}

The share of the ceiling counts what the images need: forward, and back to the images. The ceiling is the faster of a
3x3 convolution and a matrix product, measured in the same run. Memory is what one more image needs at the peak; the
last steps of a search in bfloat16 are in single precision, and in large batches decide it.

{scaling}
## What is compared

- The plain loops are in `tests/benchmarks/reference.py`: weights require gradients that nobody reads, classes and
  restarts come one batch after the other, numbers are fetched in every step, maps are contiguous, batch norms are
  layers of their own, and StyleGAN2 has weights of its own for every image.
- Generators have random weights with calibrated batch norms; the private images of a class are what the generator
  makes around a centre; targets, students and evaluators are trained on those. No data set is needed.
- Speed and first gradients are those of the networks named. Losses and rates of whole searches are compared on smaller
  ones of the same kinds, which end theirs in seconds, so that there are enough ends to compare.
- Both sides start from the same latents and draw the same noise and crops. The number of images that passed forward and
  backward through every network is counted on both sides and has to be the same.
"""


def goal(row: Row) -> float:
    """The ratio to reach on the hardware and in the precision of the row."""
    single, half, accelerator = row["goals"]
    if "cuda" in row["kind"]:
        return accelerator
    return half if row["precision"] == "bf16" else single


def _arithmetic(row: Row) -> str:
    """What was asked for, and whether it was refused."""
    refused = row["precision"] != row.get("gate", {"used": row["precision"]})["used"]
    return PRECISIONS[row["precision"]] + " (refused)" * refused


def ratios(rows: Sequence[Row]) -> list[list[str]]:
    head = [
        "case", "precision", "ratio", "goal", "engine s", "plain s", "img-it/s", "images", "repetitions", "clock",
        "results",
    ]  # fmt: skip
    return [
        head,
        *(
            [
                row["case"],
                _arithmetic(row),
                f"{row['ratio']:.2f} [{row['ratio_min']:.2f}..{row['ratio_max']:.2f}]",
                _number(goal(row), ".1f"),
                f"{row['engine_s']:.2f}",
                f"{row['reference_s']:.2f}",
                f"{row['image_iterations_per_s']:.1f}",
                str(row["images"]),
                str(row["repetitions"]),
                row["clock"],
                "equal" if row["quality_ok"] else "; ".join(row["quality"]["problems"]),
            ]
            for row in rows
        ),
    ]


def qualities(rows: Sequence[Row]) -> list[list[str]]:
    head = ["case", "precision", "cosine", "alone", "same work", "loss", "rate", "images"]
    lines = []
    for row in rows:
        line = row["quality"]
        lines.append(
            [
                row["case"],
                PRECISIONS[row["precision"]],
                f"{line['cosine']:.5f}, {line['cosine_least']:.5f}",
                f"{line['rebatched']:.0e}, {line['moved']:.0e}",
                "yes" if line["same_work"] else "no",
                f"{line['loss']:.3f} / {line['loss_reference']:.3f}",
                f"{line['rate']:.2f} / {line['rate_reference']:.2f}",
                str(line["images"]),
            ]
        )
    return [head, *lines]


def courses(rows: Sequence[Row]) -> list[list[str]]:
    head = ["case", "precision", "rate", "engine s", "plain s", "ratio", "all steps", "early stop", "steps taken"]
    return [
        head,
        *(
            [
                row["case"],
                PRECISIONS[row["precision"]],
                f"{row['rate_wanted']:.2f}",
                _number(row["time_to_quality_s"], ".2f"),
                _number(row["reference_time_to_quality_s"], ".2f"),
                _number(row["time_to_quality_ratio"], ".2f"),
                f"{early['seconds_without']:.1f} s, {early['rate_without']:.2f}",
                f"{early['seconds']:.1f} s, {early['rate']:.2f}",
                f"{early['steps']:.0%}",
            ]
            for row in rows
            for early in [row["early_stop"]]
        ),
    ]


def hardware(rows: Sequence[Row]) -> list[list[str]]:
    head = [
        "case",
        "precision",
        "GFLOP per img-it",
        "ceiling GFLOP/s",
        "share",
        "plain share",
        "MB per image",
        "plain MB",
    ]
    return [
        head,
        *(
            [
                row["case"],
                PRECISIONS[row["precision"]],
                f"{row['gigaflop_per_image_iteration']:.2f}",
                f"{row['ceiling_gflops']:.0f}",
                _number(row["mfu"], ".0%"),
                _number(row["reference_mfu"], ".0%"),
                f"{row['memory_per_image'] / 1e6:.1f}",
                f"{row['reference_memory_per_image'] / 1e6:.1f}",
            ]
            for row in rows
        ),
    ]


def scalings(rows: Sequence[Row]) -> list[list[str]]:
    head = ["case", "precision", "img-it/s by number of images"]
    return [
        head,
        *(
            [
                row["case"],
                PRECISIONS[row["precision"]],
                ", ".join(f"{images}: {speed:.1f}" for images, speed in row["scaling"].items()),
            ]
            for row in rows
            if row["scaling"]
        ),
    ]


def extras(rows: Sequence[Row]) -> list[list[str]]:
    """Rows of other work than attacks: two ways of one thing, without goals."""
    return [
        ["case", "ratio", "before s", "after s", "clock"],
        *(
            [
                row["title"],
                f"{row['ratio']:.2f} [{row['ratio_min']:.2f}..{row['ratio_max']:.2f}]",
                f"{row['reference_s']:.2f}",
                f"{row['engine_s']:.2f}",
                row["clock"],
            ]
            for row in rows
        ),
    ]


def terminal(rows: Sequence[Row]) -> str:
    """All of it in aligned columns."""
    attacks, others = _parted(rows)
    tables = [ratios(attacks), qualities(attacks), courses(attacks), hardware(attacks), scalings(attacks)]
    return "\n\n".join(aligned(lines) for lines in [*tables, extras(others)] if len(lines) > 1)


def page(rows: Sequence[Row]) -> str:
    """The page `docs/performance.md`."""
    attacks, others = _parted(rows)
    first = attacks[0]
    load = max(max(row["load"]) for row in attacks)
    clock = {"cpu": "processor time of the process", "wall": "time that passed"}[first["clock"]]
    threads = f"{first['threads']} thread{'s' * (first['threads'] != 1)}"
    machine = f"{first['device']}, torch {first['torch']}, {threads}, {clock}; load average at most {load:.1f}."
    scaling = "More restarts at once, which should cost each image nothing:\n\n" + markdown(scalings(attacks)) + "\n\n"
    text = PAGE.format(
        machine=machine,
        ratios=markdown(ratios(attacks)),
        quality=markdown(qualities(attacks)),
        course=markdown(courses(attacks)),
        hardware=markdown(hardware(attacks)),
        scaling=scaling if len(scalings(attacks)) > 1 else "",
    )
    return text + (f"\n## Other work\n\n{markdown(extras(others))}\n" if others else "")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def _parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Attacks, and other work."""
    return [row for row in rows if "quality" in row], [row for row in rows if "quality" not in row]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
