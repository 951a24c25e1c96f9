"""The report as a person sees it: in headless Chromium, wide and narrow, with everything unfolded."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.experiments.stages.test_own_answers import speaking
from tests.experiments.synthetic import HOSTILE, NO_OTHER_SEED, TOO_NOISY, facts, mediated, pathways, run, study
from wellworn.data.wording import HARMLESS
from wellworn.experiments.findings.summary import summarise
from wellworn.experiments.report.page import page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = [1300, 420]
MOST_CUT = 1.0  # pixels by which a label may leave its figure: rounding

UNFOLD = "() => { for (const fold of document.querySelectorAll('details')) fold.open = true; }"

# Text of a figure that reaches beyond the drawing is cut by it.
CUT_LABELS = """() => [...document.querySelectorAll('.plot svg.main-svg text')].flatMap((text) => {
    if (!text.textContent.trim() || text.closest('.hoverlayer')) return [];
    const box = text.getBoundingClientRect(), frame = text.closest('svg').getBoundingClientRect();
    if (box.width === 0) return [];
    const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
    return out > %s ? [`${text.closest('.plot').id}: ${text.textContent} by ${out.toFixed(0)} px`] : [];
})"""

HIDDEN_CELLS = """() => [...document.querySelectorAll('th, td')].flatMap((cell) => {
    const style = getComputedStyle(cell);
    if (!cell.textContent.trim() || style.display === 'none') return [];
    const seen = style.visibility === 'visible' && !/(rgba\\(.*, 0\\)|transparent)/.test(style.color);
    if (seen) return [];
    // A group prints its name in its first row; the rows below repeat it, for readers who hear the table.
    let row = cell.parentElement;
    while (row && !row.classList.contains('first')) row = row.previousElementSibling;
    const same = row && row.cells[cell.cellIndex].textContent === cell.textContent;
    return same ? [] : [`${cell.closest('table').className}: ${cell.textContent.trim()}`];
})"""

# Whatever is wider than the page must scroll by itself.
TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"

# Answers side by side become answers below one another, each as wide as the page.
NARROW_ANSWERS = """() => [...document.querySelectorAll('.answers td')]
    .filter((cell) => cell.getBoundingClientRect().width < 0.8 * document.documentElement.clientWidth).map((cell) => cell.textContent)"""

EMPTY_PLOTS = "() => [...document.querySelectorAll('.plot')].filter((plot) => !plot.querySelector('svg.main-svg')).map((plot) => plot.id)"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noisy = run(facts(None, TOO_NOISY), trait=HOSTILE)
    lone = run(facts(neutral=False, effect=False), trait="neutral", own=None, missing={"share": NO_OTHER_SEED, "verdict": NO_OTHER_SEED})
    plain = run(None, trait=None, arm="base", own=None)
    traits = [replace(mediated(0.6, seed=seed), pathways={"neutral": pathways(0.4, 0.15, seed)}) for seed in range(3)]
    noisy = replace(
        noisy,
        own_answers=speaking(0.6, 0.3).own_answers,
        pathways={"neutral": pathways(0.02, -0.1, effect=0.2), "base": pathways(0.1, 0.1, effect=1e-4)},
    )
    results = study(*traits, noisy, lone, plain)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(results, summarise(results)))
    return path


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; set CHROMIUM to one")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=WIDTHS)
def opened(request: pytest.FixtureRequest, browser: "Browser", report: Path) -> "Iterator[tuple[Page, list[str]]]":
    """The page with everything unfolded and drawn, and what the browser complained of or asked for."""
    said: list[str] = []
    view = browser.new_page(viewport={"width": request.param, "height": 900})
    view.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None)
    view.goto(report.as_uri())
    view.evaluate(UNFOLD)
    # A figure is drawn when it comes into view.
    for plot in view.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    # Figures take the width of their place in the next frame.
    view.wait_for_timeout(500)
    yield view, said
    view.close()


def test_every_figure_is_drawn_and_nothing_is_complained_of_or_fetched(opened: "tuple[Page, list[str]]") -> None:
    view, said = opened
    assert said == []
    assert view.evaluate(EMPTY_PLOTS) == []
    assert view.locator(".plot svg.main-svg").count() >= 10


def test_no_label_of_a_figure_is_cut(opened: "tuple[Page, list[str]]") -> None:
    assert opened[0].evaluate(CUT_LABELS % MOST_CUT) == []


def test_every_cell_can_be_read(opened: "tuple[Page, list[str]]") -> None:
    assert opened[0].evaluate(HIDDEN_CELLS) == []


def test_the_page_never_scrolls_sideways(opened: "tuple[Page, list[str]]") -> None:
    assert opened[0].evaluate(TOO_WIDE) == 0


def test_answers_are_as_wide_as_a_narrow_page(opened: "tuple[Page, list[str]]") -> None:
    view, _ = opened
    assert view.locator("#own-answers .answers td").count() >= 4
    if view.viewport_size["width"] == min(WIDTHS):  # type: ignore[index]
        assert view.evaluate(NARROW_ANSWERS) == []


def test_the_answer_is_on_the_first_screen(opened: "tuple[Page, list[str]]") -> None:
    box: Any = opened[0].locator(".answers-list li").first.bounding_box()
    assert box is not None
    assert box["y"] < 900
    assert np.isfinite(box["height"])
    assert box["x"] + box["width"] <= opened[0].viewport_size["width"]  # type: ignore[index]


# Ways out of a text, of an attribute, of a script, of a style and of a template; other directions of writing; what is wide, long or unseen.
TAGS = [
    *("<script>mark()</script>", "</script><script>mark()</script>", "<img src=x onerror=mark()>", "<svg onload=mark()>"),
    *("<iframe src=//e.example>", "</title><b>", "<!--", "-->", "]]>", "<![CDATA[", "</style><script>mark()</script>", "</textarea>"),
    *("</td></tr></table>", "<base href=//e.example>", "<link rel=stylesheet href=//e.example/a.css>"),
    *("<meta http-equiv=refresh content=0;url=//e.example>", "<form action=//e.example><input autofocus>"),
]
ESCAPES = [
    *('" onmouseover="mark()', "' onfocus='mark()' autofocus='", "javascript:mark()", "data:text/html,<script>mark()</script>"),
    *("{{ 7 * 7 }}", "{% raise %}", "${7*7}", "`${mark()}`", "\\u003cscript>mark()\\u003c/script>", "%3Cscript%3E", "&lt;script&gt;"),
    *("&amp;&#x3c;", "'", '"', "\\", "//e.example/x.png", "url(//e.example/x.png)", "@import url(//e.example)", "onerror=mark()"),
]
LETTERS = [
    *("\u202egnp.exe", "\u2066\u2067", "\u200b", "\ufeff", "\x1b[31m", "\x00", "\u0301" * 40, "\U000e0041", "a\nb\n\nc", "\t\t"),
    *("x" * 3000, "W" * 300, "a b " * 400, "\U0001f3f4" * 60, "\u0627\u0644\u0639" * 60, "\u6f22\u5b57" * 60),
]
ATTACKS = [*TAGS, *ESCAPES, *LETTERS]
OVERLAPS = """() => {
    const inner = (each) => each.closest('table table, .plot .plot') || each.parentElement.closest('table, .plot, figure');
    const boxes = [...document.querySelectorAll('h1, h2, h3, p, table, .plot, figure')]
        .filter((each) => !inner(each) && each.getBoundingClientRect().height > 0);
    const found = [];
    for (let i = 1; i < boxes.length; i++) {
        const before = boxes[i - 1], after = boxes[i];
        if (before.contains(after)) continue;
        const a = before.getBoundingClientRect(), b = after.getBoundingClientRect();
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        if (across > 1 && a.bottom - b.top > 1 && b.bottom > a.top + 1)
            found.push(`${before.tagName} ${before.textContent.slice(0, 40)} / ${after.tagName} ${after.textContent.slice(0, 40)}`);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of which every name, question, answer, setting, reason and note is an attack."""
    own = iter(ATTACKS * 9)
    runs = []
    for seed in range(len(ATTACKS) // 6):
        made = run(
            facts() if seed % 2 else facts(None, next(own)),
            trait=next(own),
            seed=seed,
            adapter=f"{next(own)}@0123",
            settings={next(own): next(own)},
            questions=[next(own), next(own)],
            notes=[next(own)],
            missing={"share": next(own), "verdict": next(own)},
        )
        runs.append(replace(made, answers=[next(own), next(own)]))
    keys = {key: next(own) for key in ("question", "expects", "refuted_by", "model")}
    results = study(*runs, **keys, runs=[{"arm": "sft", "trait": next(own)}])
    results = replace(results, base_answers=[next(own), next(own)])
    path = tmp_path_factory.mktemp("attacked") / "report.html"
    path.write_text(page(results, summarise(results)), encoding="utf-8")
    return path


def test_there_are_enough_attacks() -> None:
    assert len(set(ATTACKS)) == len(ATTACKS) >= 40


@pytest.mark.parametrize(("width", "medium"), [(1300, "screen"), (420, "screen"), (1000, "print")])
def test_hostile_texts_run_nothing_fetch_nothing_and_cover_nothing(browser: "Browser", attacked: Path, width: int, medium: Any) -> None:
    said: list[str] = []
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.expose_function("mark", lambda *_: said.append("a script ran"))
    view.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:", "blob:")) else None)
    view.emulate_media(media=medium)
    view.goto(attacked.as_uri())
    view.evaluate(UNFOLD)
    for plot in view.locator(".plot").all():
        plot.scroll_into_view_if_needed()
    for place in view.locator("td, th, summary, a").all()[:200]:
        place.dispatch_event("mouseover")
        place.dispatch_event("focus")
    view.wait_for_timeout(500)
    assert said == []
    assert view.url == attacked.as_uri()
    assert view.locator("iframe, form, base, img[src^='x'], svg[onload], [onerror], [onmouseover], [onfocus]").count() == 0
    # Widths of borders are rounded.
    assert view.evaluate(TOO_WIDE) <= MOST_CUT
    assert view.evaluate(OVERLAPS) == []
    # What it says is there to be read.
    text = view.title() + view.inner_text("body")
    assert "mark()" in text
    # Nothing in it is unseen, or turns what follows around.
    assert {each for each in text if not each.isprintable()} <= HARMLESS
    view.close()
