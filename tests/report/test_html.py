import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mi_audit.report import findings
from mi_audit.report.classes import MOST_CLASSES
from mi_audit.report.html import html
from tests.report import sample

HOSTILE = "<img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "input", "br", "line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """Collects tags, and fails on a tag that closes what is not open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    sample.draw_pictures(place)
    return place


@pytest.fixture(scope="module")
def page(folder):
    return html(sample.comparison(), folder, {"stages": {"ppa": 61.0}, "total_seconds": 75.0, "started": "today"})


def test_tags_are_balanced_and_nothing_is_fetched(page):
    parsed = Page(page)
    assert parsed.open == []
    sources = (
        [a["src"] for a in parsed.all("img")]
        + [a["href"] for a in parsed.all("link")]
        + [a["href"] for a in parsed.all("a")]
    )
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not parsed.all("iframe") and "url(" not in page and "@import" not in page
    assert all("src" not in script for script in parsed.all("script"))


def test_three_pictures_per_class_and_attack_and_one_of_the_prior(page):
    assert len(Page(page).all("img")) == 2 * 5 * 3 + 1
    assert page.count("target accepts") == 20 and page.count("evaluator disagrees") == 4


def test_page_holds_what_a_reader_needs(page):
    for text in (
        "TL-DMI lowered GMI", "no significant change", "less leakage", "Threat model", "weights and gradients",
        "built-in:cnn-wide", "parameter share", "What this cannot tell", "arxiv.org/abs/1911.07135", "NISTAML.032",
        "mi-audit defend face.safetensors --method tldmi --freeze 80% --seeds 3", "1 min 15 s", "412,000 images",
        "models/defended-s0.safetensors",
    ):  # fmt: skip
        assert text in page


def test_links_lead_to_sections_that_exist(page):
    parsed = Page(page)
    ids = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    assert {link["href"][1:] for link in parsed.all("a")} <= ids


def test_an_audit_shows_nearest_and_reconstruction(folder):
    page = html(sample.audit(verdict=sample.failing()), folder)
    assert len(Page(page).all("img")) == 2 * 5 * 2 + 1
    assert "MI001" in page and "no proof of anonymity" in page
    assert 'id="defense"' not in page and "undefended" not in page


def test_names_from_outside_are_escaped(folder):
    classes = (HOSTILE, '"><script>alert(1)</script>', "two", "three", "four")
    page = html(sample.audit(classes=classes, warnings=(HOSTILE,), command=HOSTILE), folder)
    assert HOSTILE not in page and "<script>alert" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert len(Page(page).all("script")) == 1


def test_the_only_script_that_may_run_is_the_pages_own(page):
    policy = next(
        meta["content"]
        for meta in Page(page).all("meta")
        if "content-security-policy" in str(meta.get("http-equiv")).lower()
    )
    assert "default-src 'none'" in policy and re.search(r"script-src 'sha256-[\w+/]+=*';", policy)
    assert "unsafe-inline'; script" in policy and not re.search(r"\son\w+=", page)


@pytest.mark.parametrize(("images", "reason"), [(False, "switched off"), (True, "run folder was not at hand")])
def test_without_pictures_the_page_says_so(images, reason, folder):
    page = html(sample.comparison(), folder if not images else None, images=images)
    assert reason in page and not Page(page).all("img")


def test_a_result_that_names_no_pictures_says_so(folder):
    bare = tuple(replace(attack, pictures=()) for attack in sample.audit().attacks)
    assert "names no pictures" in html(sample.audit(attacks=bare), folder)


def test_missing_foreign_and_outside_files_are_not_embedded(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n secret")
    (folder / "notes.txt").write_text("no picture")
    files = ("../secret.png", str(tmp_path / "secret.png"), "notes.txt", "images/gone.png", "images")
    pictures = tuple(
        sample.Picture(label=k, seed=0, file=f, nearest=None, accepted=True, hit=True) for k, f in enumerate(files)
    )
    page = html(sample.audit(attacks=(sample.attack("gmi", 0.3, pictures=pictures),), priors=()), folder)
    assert not Page(page).all("img") and page.count("no picture</div>") == 10


def test_only_the_most_exposed_classes_are_shown(folder):
    count = MOST_CLASSES + 7
    picture = sample.attack("gmi", 0.3).pictures[0]
    pictures = tuple(replace(picture, label=k) for k in range(count))
    values = tuple(sample.ClassValue(label=k, seed=0, value=k / count, count=1) for k in range(count))
    found = (replace(sample.attack("gmi", 0.3).measurements[0], per_class=values),)
    many = sample.attack("gmi", 0.3, pictures=pictures, measurements=found)
    names = tuple(f"person-{k}" for k in range(count))
    page = html(sample.audit(attacks=(many,), classes=names, attacked=tuple(range(count))), folder)
    assert page.count('<article class="card">') == MOST_CLASSES
    assert "7 more are in the run folder" in page
    assert "<h4>person-6</h4>" not in page and "<h4>person-7</h4>" in page


def test_table_of_classes_averages_seeds_by_their_images(folder):
    values = (
        sample.ClassValue(label=0, seed=0, value=1.0, count=3),
        sample.ClassValue(label=0, seed=1, value=0.0, count=1),
    )
    found = (replace(sample.attack("gmi", 0.3).measurements[0], per_class=values),)
    page = html(sample.audit(attacks=(sample.attack("gmi", 0.3, measurements=found, pictures=()),)), folder)
    assert 'data-value="0.75"' in page and "75.0%" in page


@pytest.mark.parametrize("timing", [None, {}, {"stages": {"ppa": 3.0}}])
def test_timing_may_be_missing_or_partial(timing, folder):
    assert ("3.0 s" in html(sample.audit(), folder, timing)) == bool(timing)


def test_a_bare_report_is_still_a_page(folder):
    bare = sample.audit(attacks=(), priors=(), papers=(), limits=())
    assert Page(html(bare, None)).open == []


def test_page_without_pictures_is_small():
    assert len(html(sample.comparison(), None, images=False).encode()) < 200_000


@pytest.fixture(scope="module")
def trusted(folder):
    return html(sample.trusted(verdict=sample.decided(waivers=(sample.waiver(),))), folder)


def test_exposure_checks_verifier_and_controls_are_shown(trusted):
    for text in (
        "An independent verifier recognises 3 of 300 attacked identities", "corrected upper bound", "limitline",
        "G3 NOT_CONVERGED", "Not passed", "raise steps until the target accepts 90%", "Not checked",
        "digits:5-9, which the target did not see", "small and trained on few identities", "similarity 0.62",
        "control: permuted labels (ppa)", "Exposure beyond the control", "+20.0 pts", "Waived", "2027-01-31",
    ):  # fmt: skip
        assert text in trusted
    assert Page(trusted).open == []


def test_a_note_on_a_control_is_escaped_and_beside_it(folder):
    floor = replace(sample.control(), name="control:counterfactual:ppa", note="Trained on <b>others</b>.")
    page = html(sample.trusted(attacks=(sample.attack("ppa", 0.3), floor)), folder)
    assert "<small>Trained on &lt;b&gt;others&lt;/b&gt;.</small>" in page


def test_every_page_says_that_a_pass_is_no_proof_and_how_threats_are_filed(folder):
    page = html(sample.audit(), folder)
    assert "A pass is no proof of anonymity" in page
    assert all(name in page for name in ("NISTAML.032", "AML.T0024.001", "ML03:2023"))


def test_what_was_not_done_is_said(folder):
    bare = sample.audit(attacks=(sample.attack("gmi", 0.3),))
    page = html(bare, folder)
    for text in ("No validity checks were recorded", "No independent verifier took part", "No control was run"):
        assert text in page


def test_both_sides_of_a_comparison_show_their_checks(folder):
    page = html(sample.comparison(before=sample.trusted(), after=sample.trusted()), folder)
    assert page.count("G3 NOT_CONVERGED") == 2 and "The same checks before" in page


def test_without_names_only_pseudonyms_are_left(folder):
    names = ("Ada Hidden", "Bob Hidden", "Cleo Hidden", "Dan Hidden", "Eve Hidden")
    result = sample.comparison(before=sample.trusted(classes=names), after=sample.trusted(classes=names))
    page = html(result, folder, names=False)
    assert "Hidden" not in page and findings.pseudonym("Eve Hidden") in page and 'id="names"' not in page
    assert 'data-id="' not in page
    assert "Hidden" in html(result, folder)


def test_hostile_checks_and_verifiers_are_escaped(folder):
    flag = sample.ValidityFlag(id=HOSTILE, passed=False, detail=HOSTILE, clears=HOSTILE)
    judge = replace(sample.verifier(), ref=HOSTILE, arch=HOSTILE, trained_on=HOSTILE, weakness=HOSTILE)
    waived = sample.decided(waivers=(sample.waiver(reason=HOSTILE, id=HOSTILE, expires=HOSTILE, applied=False),))
    page = html(sample.trusted(validity=(flag,), verifier=judge, verdict=waived, classes=(HOSTILE,) * 5), folder)
    assert HOSTILE not in page and Page(page).open == []


def test_a_large_page_without_pictures_is_below_two_megabytes():
    count = 1000
    values = tuple(sample.ClassValue(label=k, seed=0, value=k / count, count=1) for k in range(count))
    base = sample.trusted()
    attacks = tuple(
        replace(a, measurements=tuple(replace(m, per_class=values if m.per_class else ()) for m in a.measurements))
        for a in base.attacks
    )
    names = tuple(f"person-{k:04d} with a long name" for k in range(count))
    large = replace(base, attacks=attacks, classes=names, attacked=tuple(range(count)))
    assert len(html(sample.comparison(before=large, after=large), None, images=False).encode()) < 2_000_000
