"""One self-contained HTML page: no request leaves it, no script it did not bring can run in it."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_audit.core.report import AuditReport, Comparison
from mi_audit.report import arithmetic, classes, defended, figures, findings, savings, trust, view, wording

if TYPE_CHECKING:
    from jinja2 import Environment

PNG = b"\x89PNG\r\n\x1a\n"


def html(
    result: AuditReport | Comparison,
    folder: Path | None,
    timing: Mapping[str, Any] | None = None,
    images: bool = True,
    names: bool = True,
) -> str:
    """The page of `result`.

    Args:
        result: What to show.
        folder: Run folder with the pictures; None leaves them out.
        timing: The content of `timing.json`, when it is at hand.
        images: False leaves the pictures out, and says so.
        names: False puts pseudonyms in place of the names of classes.
    """
    worst = trust.worst(result, names=names)
    result = result if names else nameless(result)
    page = environment()
    script = page.get_template("script.html.j2").render().strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    embed = _embedder(folder) if folder is not None and images else _no_picture
    before, after = view.sides(result)
    return page.get_template("page.html.j2").render(
        result=result,
        before=before,
        report=after,
        headline=wording.headline(result),
        blocks=view.blocks(result),
        utility=view.utility(result),
        galleries=classes.galleries(result, embed) if embed is not _no_picture else (),
        prior_samples=[(prior, embed(prior.samples)) for prior in after.priors],
        table=classes.class_table(result),
        charts=view.charts(result),
        cautions=defended.cautions(result),
        warnings=wording.warnings(result),
        defended=defended.defended(result),
        gauge=trust.gauge(result),
        controls=trust.controls(after),
        worst=worst,
        names=names,
        facts=view.key_facts(result),
        floor=view.floor_words(result),
        pictures=_pictures_note(folder, images),
        timing=timing,
        script=script,
        script_hash=digest,
    )


def nameless(result: AuditReport | Comparison) -> AuditReport | Comparison:
    """`result` with pseudonyms in place of the names of classes."""
    if isinstance(result, Comparison):
        return replace(result, before=_nameless(result.before), after=_nameless(result.after))
    return _nameless(result)


def _nameless(report: AuditReport) -> AuditReport:
    return replace(report, classes=tuple(findings.pseudonym(name) for name in report.classes))


@cache
def environment() -> "Environment":
    """The templates, with what all of them call."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page = Environment(
        loader=PackageLoader("mi_audit.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page.globals |= {
        "wording": wording,
        "arithmetic": arithmetic,
        "figures": figures,
        "savings": savings,
        "pseudonym": findings.pseudonym,
    }
    return page


def _pictures_note(folder: Path | None, images: bool) -> str:
    if not images:
        return "Pictures are switched off for this report."
    if folder is None:
        return "The run folder was not at hand, so this report has no pictures."
    return ""


def _no_picture(file: str | None) -> str | None:
    del file
    return None


def _embedder(folder: Path) -> classes.Embed:
    """A function from paths in the run folder to data URIs; None for what is missing, no PNG, or outside the folder."""
    root = folder.resolve()

    @cache
    def embed(file: str | None) -> str | None:
        path = (root / file).resolve() if file else root
        if not path.is_relative_to(root) or not path.is_file():
            return None
        data = path.read_bytes()
        return f"data:image/png;base64,{base64.b64encode(data).decode()}" if data.startswith(PNG) else None

    return embed
