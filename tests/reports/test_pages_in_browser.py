"""The pages in a real browser, opened from a folder: whole, silent, offline, on a phone and on a desk, by
keyboard.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlparse

import chromium
import pytest
from report_phantoms import UNFAMILIAR, failed, make_prepared_record, make_record

from iqtflow.models.model_file import read_card
from iqtflow.reports.assemble.group import Evaluated, write_group_page
from iqtflow.reports.assemble.index import write_index_page
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.record import Record

PAGES = ("sub-01.html", "sub-02.html", "index.html", "group.html")
#: A page is as wide as the screen, not wider; nothing in it sticks out of the screen either, but what
#: scrolls by itself.
TOO_WIDE = """(() => {
  const root = document.documentElement;
  const out = [...document.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.right > innerWidth + 1 && !e.closest(".scroll, .stage, pre");
  });
  return [root.scrollWidth - root.clientWidth, ...out.map(e => e.outerHTML.slice(0, 120))];
})()"""
PICTURES = (
    "[...document.images].map(i => [decodeURIComponent(i.src), i.complete, i.naturalWidth, i.naturalHeight])"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.PROGRAM is None:
        pytest.skip("chromium is not installed")
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Output of a run: an enhanced, a failed and a skipped scan, a prepared one, and a trained model."""
    volumes, out = tmp_path_factory.mktemp("volumes"), tmp_path_factory.mktemp("a folder with spaces")
    enhanced = make_record(volumes)
    enhanced.details["OutOfDistribution"] = UNFAMILIAR
    skipped = Record("skipped", "/d/sub-01_run-3_T1w.nii.gz", message="near-isotropic")
    write_subject_page(
        out, "01", [enhanced, failed("sub-01_run-2_T1w", "4 dimensions", log="a\nb\n" * 50), skipped]
    )
    write_subject_page(out, "02", [make_prepared_record(volumes, n_draws=2)])
    curves = volumes / "curves.csv"
    rows = [f"{100 * i},{1 / (i + 1)},{1.1 / (i + 1)},1" for i in range(20)]
    curves.write_text("\n".join(["step,train_loss,val_loss,seconds", *rows]) + "\n")
    scores = [
        Evaluated(
            f"E{i}",
            spline={"psnr": 22.0 + i, "mssim": 0.7, "mssim_slicewise": 0.72},
            mean={"psnr": 26.0 + 1.5 * i, "mssim": 0.85, "mssim_slicewise": 0.88},
        )
        for i in range(4)
    ]
    examples = [replace(enhanced, subject=f"E{i}") for i in range(4)]
    card = read_card("iqt-k4")
    write_group_page(
        out, "aniso-k4", card=card, curves={"network 1": curves}, evaluation=scores, examples=examples
    )
    write_index_page(out, ["01", "02", "03"])
    return out


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_whole_silent_and_offline_and_fits_phone_and_desk(browser, site, name):
    tab = browser.open(site / name, width=1280)
    assert tab.evaluate(TOO_WIDE) == [0]
    tab.resize(390)
    assert tab.evaluate(TOO_WIDE) == [0]
    pictures = tab.evaluate(PICTURES)
    assert all(complete and width > 0 and height > 0 for _, complete, width, height in pictures), pictures
    shown = {Path(unquote(urlparse(source).path)) for source, *_ in pictures}
    assert shown == expected_pictures(site, name)
    assert {urlparse(address).scheme for address in tab.requests()} <= {"file", "data"}
    assert tab.evaluate("document.getElementById('lost').hidden")
    assert tab.faults() == []


def expected_pictures(site: Path, name: str) -> set[Path]:
    """Every figure that was written for a page, and none besides."""
    folder = site / "figures" if name == "group.html" else site / name.removesuffix(".html") / "figures"
    if name == "index.html":
        return set(site.glob("sub-*/figures/*_thumbnail.webp"))
    return {p for p in folder.iterdir() if p.suffix != ".json" and not p.name.endswith("_thumbnail.webp")}


def test_the_browser_test_can_fail(browser, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<meta charset=utf-8><img src=gone.png><img src=//example.invalid/x.png>"
        "<script>undefined_name()</script><div style='width: 2000px'>wide</div>"
    )
    tab = browser.open(tmp_path / "bad.html", width=390)
    faults = " ".join(tab.faults())
    assert "request failed" in faults and "exception" in faults
    assert tab.evaluate(TOO_WIDE)[0] > 0
    assert all(width == 0 for *_, width, _ in tab.evaluate(PICTURES))


def test_everything_on_a_picture_can_be_done_by_keyboard(browser, site):
    tab = browser.open(site / "sub-01.html", width=1280)
    tab.evaluate("document.querySelector('nav a:last-of-type').focus()")
    stage = "document.querySelector('.compare .stage')"
    for _ in range(30):
        tab.press("Tab")
        if tab.evaluate("document.activeElement.className") == "wipe":
            break
    assert tab.evaluate(f"{stage}.contains(document.activeElement)"), "the line is reached with the tab key"
    tab.press("ArrowRight", 10)
    assert tab.evaluate(f"{stage}.style.getPropertyValue('--wipe')") == "60%"
    tab.press("Tab")
    tab.press("Enter")
    assert tab.evaluate(f"{stage}.style.getPropertyValue('--wipe')") == "100%", "before only"
    before = tab.evaluate("document.querySelector('.compare .place').textContent")
    tab.press("Tab", 3)
    tab.press("ArrowRight")
    assert tab.evaluate("document.querySelector('.compare .place').textContent") != before
    tab.press("Tab")
    tab.press(" ")
    assert tab.evaluate(f"{stage}.classList.contains('sheet')"), "all slices at once"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) != "none", "the focus is seen"


def test_on_paper_before_and_after_stand_side_by_side_without_controls(browser, site):
    tab = browser.open(site / "sub-01.html", width=794)
    tab.call("Emulation.setEmulatedMedia", media="print")
    controls = "[...document.querySelectorAll('.controls, .wipe, nav')]"
    assert tab.evaluate(f"{controls}.every(e => getComputedStyle(e).display === 'none')")
    boxes = tab.evaluate(
        "[...document.querySelector('.compare .stage').querySelectorAll('.layer')].map(e => "
        "{ const b = e.getBoundingClientRect(); return [b.left, b.right, b.height]; })"
    )
    (_, first_right, height), (second_left, *_) = boxes
    assert first_right <= second_left + 1 and height > 50
    assert tab.evaluate(TOO_WIDE)[0] == 0


def test_a_page_without_its_figures_says_how_many_it_lacks(browser, site, tmp_path):
    alone = tmp_path / "sub-01.html"
    alone.write_bytes((site / "sub-01.html").read_bytes())
    tab = browser.open(alone, width=1280)
    total = tab.evaluate("document.images.length")
    assert total > 30
    assert tab.evaluate("document.getElementById('lost').innerText").startswith(
        f"{total} of {total} pictures"
    )


def test_without_script_both_halves_of_a_picture_are_there(browser, site):
    tab = browser.open(site / "sub-02.html", width=390, script="")
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.call("Page.navigate", url=(site / "sub-02.html").as_uri())
    browser.wait(lambda m: m.get("method") == "Page.loadEventFired" and m.get("sessionId") == tab.session)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.evaluate("document.querySelector('.stage').getBoundingClientRect().height") > 50
    assert tab.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"


def test_the_index_is_narrowed_to_those_that_failed_and_by_label(browser, site):
    tab = browser.open(site / "index.html", width=390)
    visible = "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => c.dataset.label)"
    assert tab.evaluate(visible) == ["sub-01", "sub-03", "sub-02"], "failures first"
    tab.evaluate("document.querySelector('[data-filter=prepared]').click()")
    assert tab.evaluate(visible) == ["sub-02"]
    tab.evaluate("document.querySelector('[data-filter=\"\"]').click()")
    tab.evaluate("document.querySelector('.filter input').focus()")
    tab.call("Input.insertText", text="03")
    assert tab.evaluate(visible) == ["sub-03"]
    assert tab.evaluate("document.querySelector('.shown').textContent") == "1 of 3 shown"
