import os
import shutil

import pytest

from mi_audit.report.findings import pseudonym
from mi_audit.report.html import html
from tests.report import sample

HOSTILE = "<img src=x onerror=alert(1)>"
CHROMIUM = os.environ.get("MI_AUDIT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; install one or set MI_AUDIT_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sample.draw_pictures(folder)
    names = (HOSTILE, "one", "two", "three", "four")
    pages = {
        "comparison": sample.comparison(after=sample.audit(side="after/", gmi=0.31, ppa=0.59, classes=names)),
        "audit": sample.trusted(classes=names),
    }
    for name, result in pages.items():
        (folder / f"{name}.html").write_text(html(result, folder, {"stages": {"ppa": 1.0}}), encoding="utf-8")
    return folder


@pytest.fixture(params=["comparison", "audit"])
def page(request, browser, files):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.complaints, opened.requests = [], []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (opened.complaints.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda asked: opened.requests.append(asked.url))
    opened.goto((files / f"{request.param}.html").as_uri())
    yield opened
    assert opened.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in opened.requests)
    assert sum(url.startswith("file:") for url in opened.requests) == 1
    context.close()


def column(page, place):
    return page.eval_on_selector_all(
        "#per-class tbody tr", f"rows => rows.map(row => Number(row.cells[{place}].dataset.value))"
    )


def test_tables_and_pictures_are_there(page):
    assert page.locator("table.measures").count() == 3
    assert page.locator("#per-class tbody tr").count() == 5
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) in (31, 21) and min(widths) > 0


def test_columns_sort_both_ways(page):
    button = page.locator("#per-class thead tr").nth(1).locator("button").nth(1)
    button.click()
    assert column(page, 1) == sorted(column(page, 1), reverse=True)
    assert page.locator("th[aria-sort=descending]").count() == 1
    button.click()
    assert column(page, 1) == sorted(column(page, 1))
    page.locator("#per-class thead tr").nth(1).locator("button").first.click()
    assert column(page, 0) == [0, 1, 2, 3, 4]


def test_sorting_works_from_the_keyboard(page):
    page.locator("#per-class thead tr").nth(1).locator("button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=descending]").count() == 1


def test_filter_keeps_matching_classes(page):
    page.fill("#filter", "THR")
    assert page.locator("#per-class tbody tr:visible").count() == 1
    assert page.inner_text("#shown") == "1 of 5 classes"


def test_filter_knows_pseudonyms(page):
    page.fill("#filter", pseudonym("three"))
    assert page.locator("#per-class tbody tr:visible th").all_inner_texts() == ["three"]


def test_names_of_the_worst_are_hidden_until_asked_for(page):
    cells = page.locator("#worst-identities td.name")
    assert cells.count() == 5 and page.locator("#worst-identities td.name:visible").count() == 0
    page.locator("#names").focus()
    page.keyboard.press("Space")
    assert page.locator("#worst-identities td.name:visible").count() == 5
    assert HOSTILE in cells.all_inner_texts()


def test_pictures_slide_by_keyboard_in_a_comparison_only(page):
    switch = page.locator("#slide")
    if "audit.html" in page.url:
        assert switch.count() == 0
        return
    slider = page.locator(".wipe input").first
    assert not slider.is_visible()
    switch.focus()
    page.keyboard.press("Space")
    before, after = (page.locator(f".shot.{side} img").first for side in ("before", "after"))
    place = "image => [image.offsetLeft, image.offsetTop, image.width]"
    assert before.evaluate(place) == after.evaluate(place)
    clip = "image => getComputedStyle(image).clipPath"
    assert "50%" in after.evaluate(clip)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert "51%" in after.evaluate(clip) and slider.get_attribute("aria-valuetext") == "51% before, 49% after"
    page.keyboard.press("Home")
    assert slider.input_value() == "0"
    switch.uncheck()
    assert not slider.is_visible() and after.evaluate(clip) == "none"


def test_hostile_class_name_is_text(page):
    assert page.locator("#per-class tbody th").first.inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_never_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(page, scheme):
    page.emulate_media(color_scheme=scheme)
    ratio = page.evaluate("""() => {
        const light = (color) => {
          const part = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
        };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return Math.min(...["body", ".lead", ".note", "nav a"].map((name) => {
          const ink = light(getComputedStyle(document.querySelector(name)).color);
          return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        }));
    }""")
    assert ratio >= 4.5


def test_everything_is_open_on_paper(page):
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_paper_is_wide_enough(page):
    page.set_viewport_size({"width": 720, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
