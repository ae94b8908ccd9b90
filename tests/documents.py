"""What the documents say: their commands, links, tables and code blocks."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

from mi_audit.audit.settings_tables import describe, flag_of, kind_of, leaves

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
]
SHELLS = ("console", "bash", "sh", "shell", "yaml")


class Block(NamedTuple):
    language: str
    text: str


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every complete `mi-audit` command, without the program: from shell blocks and from code in the text.

    Code in the text counts as a command when it is more than the name of one: `mi-audit attack` only has to exist.
    """
    for block in blocks(page):
        if block.language in SHELLS:
            for line in block.text.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").strip().removeprefix("- run: ").partition(" #")[0]
                yield from _programs(shlex.split(line) if "mi-audit " in line else [])
    for code in re.findall(r"`(mi-audit [^`]+)`", prose(page)):
        yield from _programs(shlex.split(code))


def _programs(words: list[str]) -> Iterator[list[str]]:
    """The parts of a shell line that call mi-audit."""
    part: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", "||", ";", "|"):
            if part[:1] == ["mi-audit"]:
                yield part[1:]
            part = []
        else:
            part.append(word)


def between(page: Path, name: str) -> str:
    """The text between the comments `<!-- name: begin -->` and `<!-- name: end -->`."""
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text()
    assert start in text and end in text, f"{page.name} lacks the markers of {name}"
    return text.partition(start)[2].partition(end)[0].strip()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def settings_tables() -> str:
    """The tables of all settings, as docs/configuration.md shows them."""
    tables: dict[str, list[str]] = {}
    for key, default in leaves().items():
        if len(key) > 1:
            tables.setdefault(key[0], []).append(_row(key, default))
    head = "| key | default | option | meaning |\n|---|---|---|---|\n"
    rule = ("gate",)
    gates = f"### `[[gate]]`\n\n{head}{_row(rule, ())}"
    return "\n\n".join([f"### `[{table}]`\n\n{head}" + "\n".join(rows) for table, rows in tables.items()] + [gates])


def _row(key: tuple[str, ...], default: object) -> str:
    kind = kind_of(key)
    choices = f" ({', '.join(get_args(kind))})" if get_origin(kind) is Literal else ""
    cells = (f"`{key[-1]}`", _shown(default), f"`{flag_of(key)}`", describe(key) + choices)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(default: object) -> str:
    if default in (None, ()):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{','.join(map(str, default))}`" if isinstance(default, tuple) else f"`{default}`"
