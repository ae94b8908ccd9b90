"""A block for a model card: YAML front matter with a `model-index`, as model hubs read it, and Markdown for people."""

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from mi_audit.core.report import AuditReport, Comparison, Quantity
from mi_audit.report import defended, view, wording
from mi_audit.report.markdown import code, escape, table

SHOWN = ("exposure", "attack_acc1")
UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def model_card(result: AuditReport | Comparison) -> str:
    """Front matter and a section for a public model card: shares and bounds; no picture, class or path."""
    return "\n".join(["---", *_front_matter(result), "---", "", *_section(result)]).rstrip() + "\n"


def scalar(text: object) -> str:
    """`text` as a double-quoted YAML scalar, whatever it holds."""
    quoted = json.dumps(str(text), ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", quoted)


def _front_matter(result: AuditReport | Comparison) -> Iterator[str]:
    _, after = view.sides(result)
    model = after.targets[0] if after.targets else None
    yield "tags:"
    yield "- model-inversion-audit"
    yield "model-index:"
    yield f"- name: {scalar(_last(model.ref) if model else 'no model')}"
    yield "  results:"
    yield "  - task:"
    yield "      type: image-classification"
    yield "    dataset:"
    yield "      type: private"
    yield f"      name: {scalar(_last(after.private.ref))}"
    yield "    metrics:"
    if model and model.accuracy.value is not None:
        yield from _metric("accuracy", "accuracy", model.accuracy, {"split": "test"})
    for attack in after.without_controls:
        for measurement in (m for m in attack.measurements if m.name in SHOWN and m.value is not None):
            name = f"{wording.metric_title(measurement.name)}, {wording.attack_title(attack.name)}"
            facts = {"attack": attack.name, "access": attack.access, "protocol": measurement.protocol}
            yield from _metric(f"mi-audit-{measurement.name}", name, measurement, facts)


def _metric(kind: str, name: str, quantity: Quantity, facts: dict[str, str]) -> Iterator[str]:
    yield f"    - type: {scalar(kind)}"
    yield f"      name: {scalar(name)}"
    yield f"      value: {quantity.value!r}"
    yield "      args:"
    for key, value in facts.items():
        yield f"        {key}: {scalar(value)}"
    yield f"        count: {quantity.count}"
    if quantity.interval:
        yield f"        low: {quantity.interval.low!r}"
        yield f"        high: {quantity.interval.high!r}"


def _section(result: AuditReport | Comparison) -> Iterator[str]:
    _, after = view.sides(result)
    head = wording.headline(result)
    yield "## Model inversion audit"
    yield ""
    yield f"**{head.outcome}.** {escape(head.sentence)}"
    exposure = result.verdict.exposure if result.verdict else None
    if exposure:
        yield ""
        yield escape(wording.exposure_line(exposure))
    columns = ("Attack", "Access", *(wording.metric_title(name) for name in SHOWN), "Control")
    yield from table(columns, list(_rows(after)))
    about = defended.defended(result)
    if about:
        yield f"The model was trained with the defense {code(about.facts.get('method', 'unknown'))}."
        yield ""
    told = defended.cautions(result)
    if told:
        yield f"**{wording.TELL}**"
        yield ""
        yield from (f"- {escape(text)}" for text in told)
        yield ""
    yield f"{wording.attacked_line(after)}. {_judge(after)}"
    yield ""
    for flag in (flag for flag in after.validity if flag.passed is False):
        yield f"- {escape(flag.id)}: {escape(flag.detail)}"
    yield ""
    yield f"{wording.NO_PROOF} {wording.TAXONOMY}"
    yield ""
    version = after.tool.get("mi-audit", "")
    yield f"<sub>mi-audit {escape(version)}, result {escape(result.id[:12])}, weights {_weights(after)}</sub>"


def _rows(report: AuditReport) -> Iterator[tuple[str, ...]]:
    for attack in report.without_controls:
        control = wording.control_for(report, attack)
        values = [wording.with_interval(attack.measurement(name)) for name in SHOWN]
        shown = next((name for name in SHOWN if view.measurement_of(attack, name)), SHOWN[-1])
        floor = wording.with_interval(view.measurement_of(control, shown))
        yield (escape(wording.attack_title(attack.name)), escape(attack.access), *values, floor)


def _judge(report: AuditReport) -> str:
    if report.verifier is None:
        return f"Judged by a classifier of the same task, {code(report.evaluator.arch)}, which is no independent judge."
    return (
        f"Exposure was judged by the verifier {code(report.verifier.arch)}, whose false acceptance rate is "
        f"{wording.with_interval(report.verifier.far)}. {escape(wording.as_sentence(report.verifier.weakness))}"
    )


def _weights(report: AuditReport) -> str:
    return ", ".join(code(model.sha256[:12]) for model in report.targets)


def _last(ref: str) -> str:
    """The end of a reference: a card is public, the folders of a machine are not."""
    return PurePosixPath(ref.replace("\\", "/").rstrip("/")).name or ref
