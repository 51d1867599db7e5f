"""The pages in Chromium: complete, without errors, offline, on a phone and on a desk, by keyboard."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from shutil import which
from urllib.parse import unquote, urlparse

import nibabel as nib
import pytest
from report_phantoms import (
    UNFAMILIAR,
    failed,
    make_head,
    make_prepared_record,
    make_record,
    write_calibration,
)

from iqtflow.models.model_file import read_card
from iqtflow.reports.assemble.calibration import write_calibration_page
from iqtflow.reports.assemble.group import Evaluated, write_group_page
from iqtflow.reports.assemble.index import write_index_page
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.draw.measured import draw_measurement
from iqtflow.reports.record import Record

PAGES = ("sub-01.html", "sub-02.html", "index.html", "group.html", "calibration.html")
PROGRAM = which("chromium") or which("chromium-browser") or which("google-chrome")
#: WebGL on the processor, for the viewer.
WITHOUT_GPU = ("--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader")
#: Pixels that a page is wider than the screen, and all parts that are; parts that scroll may be.
TOO_WIDE = """(() => {
  const root = document.documentElement;
  const out = [...document.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.right > innerWidth + 1 && !e.closest(".scroll, .stage, pre");
  });
  return [root.scrollWidth - root.clientWidth, ...out.map(e => e.outerHTML.slice(0, 120))];
})()"""
#: Mean of red, green and blue of a part's text, and of what is behind it.
SHADES = """name => {
  const numbers = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const mean = colour => numbers(colour).reduce((sum, part) => sum + part / 3, 0);
  const part = document.querySelector(name);
  let behind = part;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  return [mean(getComputedStyle(part).color), mean(getComputedStyle(behind).backgroundColor)];
}"""
PICTURES = """Promise.all([...document.images].map(async image => {
  image.loading = "eager";
  await image.decode().catch(() => null);
  return [decodeURIComponent(image.src), image.complete, image.naturalWidth, image.naturalHeight];
}))"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if PROGRAM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-dev-shm-usage", *WITHOUT_GPU]
        with started.chromium.launch(executable_path=PROGRAM, args=options) as chromium:
            yield chromium


@pytest.fixture
def tab(browser):
    """A tab that notes the addresses that it asks for, and all errors and warnings."""
    with browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        page.asked, page.faults = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("requestfailed", lambda request: page.faults.append(f"request failed: {request.url}"))
        page.on("pageerror", lambda fault: page.faults.append(f"exception: {fault}"))
        page.on(
            "console",
            lambda told: page.faults.append(told.text) if told.type in ("error", "warning") else None,
        )
        yield page


def show(tab, page: Path, *, width: int = 1280) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(page.as_uri())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Output of a run: an enhanced, a failed and a skipped scan, a prepared one, and a trained model."""
    volumes, out = tmp_path_factory.mktemp("volumes"), tmp_path_factory.mktemp("a folder with spaces")
    enhanced = make_record(volumes)
    enhanced.details["OutOfDistribution"] = UNFAMILIAR
    broken = failed("sub-01_run-2_T1w", "4 dimensions", log="a\nb\n" * 50)
    skipped = Record("skipped", "/d/sub-01_run-3_T1w.nii.gz", message="near-isotropic")
    write_subject_page(out, "01", [enhanced, broken, skipped])
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
    head, brain, affine = make_head()
    regions = {"wm": head > 150, "gm": head > 80, "mask": brain, "noise": head < 20}
    write_calibration(out, [(35.0, 25.0), (36.0, 26.0), (33.0, 24.0)])
    draw_measurement(out / "calibration/sub-01_T1w_snr.png", nib.Nifti1Image(head, affine), regions)
    write_calibration_page(out)
    write_index_page(out, ["01", "02", "03"])
    return out


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_whole_silent_and_offline_and_fits_phone_and_desk(tab, site, name):
    show(tab, site / name)
    assert tab.evaluate(TOO_WIDE) == [0]
    tab.set_viewport_size({"width": 390, "height": 900})
    assert tab.evaluate(TOO_WIDE) == [0]
    pictures = tab.evaluate(PICTURES)
    assert all(complete and width > 0 and height > 0 for _, complete, width, height in pictures), pictures
    shown = {Path(unquote(urlparse(source).path)) for source, *_ in pictures}
    assert shown == expected_pictures(site, name)
    assert {urlparse(address).scheme for address in tab.asked} <= {"file", "data"}
    assert not tab.locator("#lost").is_visible()
    assert tab.faults == []


def expected_pictures(site: Path, name: str) -> set[Path]:
    """Every figure that was written for a page, and none besides."""
    folder = site / "figures" if name == "group.html" else site / name.removesuffix(".html") / "figures"
    if name == "calibration.html":
        return set((site / "calibration").glob("*.png"))
    if name == "index.html":
        return set(site.glob("sub-*/figures/*_thumbnail.webp"))
    return {
        p
        for p in folder.iterdir()
        if p.suffix in (".webp", ".svg") and not p.name.endswith("_thumbnail.webp")
    }


def test_the_browser_test_can_fail(tab, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<meta charset=utf-8><img src=gone.png><img src=//example.invalid/x.png>"
        "<script>undefined_name()</script><div style='width: 2000px'>wide</div>"
    )
    show(tab, tmp_path / "bad.html", width=390)
    faults = " ".join(tab.faults)
    assert "request failed" in faults and "exception" in faults
    assert tab.evaluate(TOO_WIDE)[0] > 0
    assert all(width == 0 for *_, width, _ in tab.evaluate(PICTURES))


def test_everything_on_a_picture_can_be_done_by_keyboard(tab, site):
    show(tab, site / "sub-01.html")
    group = tab.locator(".comparisons").first
    stage, place = group.locator(".stage").first, group.locator(".place").first
    tab.locator("nav a").last.focus()

    def press(*keys: str) -> None:
        for key in keys:
            tab.keyboard.press(key)

    def shows() -> tuple[str, list[str]]:
        mode = next(m for m in ("beside", "slider", "blink") if m in group.get_attribute("class").split())
        visible = [layer for layer in stage.locator(".layer").all() if layer.is_visible()]
        return mode, [layer.get_attribute("data-layer") for layer in visible]

    assert shows() == ("beside", ["acquired", "iqt"])
    press("Tab", "Tab", "Tab", "Tab", "Enter")  # rate, viewer, side by side, slider
    assert shows()[0] == "slider"
    press("Tab", "Tab", "Tab", "Enter")
    assert shows()[1] == ["spline", "iqt"]
    press("Tab", *["ArrowRight"] * 10)
    assert "--wipe: 60%" in stage.get_attribute("style"), "the line is reached with the tab key"
    before = place.text_content()
    press("Tab", "ArrowRight")
    assert place.text_content() != before
    press("Tab", "Space")
    assert group.locator(".all-slices").count() == 1, "all slices at once"
    assert shows()[0] == "beside", "a line would have different slices on its sides"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) != "none", "the focus is seen"


def test_the_first_screen_says_what_was_done_whether_to_trust_it_and_why_with_a_picture(tab, site):
    for width, height in ((1280, 800), (390, 844)):
        show(tab, site / "sub-01.html", width=width)
        for part in (".trust strong", ".trust", ".what"):
            box = tab.locator(part).first.bounding_box()
            assert box["y"] + box["height"] <= height, part
        picture = tab.locator(".stage").first.bounding_box()
        assert picture["y"] + 150 <= height


def test_the_viewer_opens_from_files_and_shows_every_volume_by_keyboard(tab, site):
    show(tab, site / "sub-01.html")
    viewer = tab.locator(".viewer")
    canvas = viewer.locator("canvas")
    viewer.locator(".open").focus()
    tab.keyboard.press("Enter")
    shown: dict[str, bytes] = {}
    for key, state in (("", "iqt"), ("1", "acquired"), ("4", "acquired std"), ("2", "spline std")):
        if key:
            tab.keyboard.press(key)
        tab.locator(f'.viewer[data-shown="{state}"]').wait_for()
        shown[state] = canvas.screenshot()
    assert len(set(shown.values())) == len(shown), "every choice looks different"
    place = viewer.locator(".mm").text_content()
    tab.keyboard.press("ArrowUp")
    assert viewer.locator(".mm").text_content() != place
    assert {urlparse(address).scheme for address in tab.asked} <= {"file", "data"}
    assert tab.faults == []


def test_in_the_dark_text_is_light_and_readable(browser, site):
    parts = {
        "sub-01.html": (".scan", ".trust", ".quiet", ".notice", "summary"),
        "index.html": (".reason", ".scans .badge", ".scans th", ".rating button", ".finder select"),
        "group.html": (".trust", ".checks .words", ".checks .warn"),
        "calibration.html": (".trust", ".checks .words", ".scans td.number"),
    }
    with browser.new_page(color_scheme="dark") as tab:
        for page, names in parts.items():
            tab.goto((site / page).as_uri())
            shades = {name: tab.evaluate(SHADES, name) for name in names}
            assert all(text > paper + 80 for text, paper in shades.values()), (page, shades)


def test_on_paper_acquired_and_enhanced_stand_side_by_side_without_controls(tab, site):
    show(tab, site / "sub-01.html", width=794)
    tab.emulate_media(media="print")
    assert not any(part.is_visible() for part in tab.locator(".controls, .wipe, nav").all())
    visible = [
        part for part in tab.locator(".compare .stage").first.locator(".layer").all() if part.is_visible()
    ]
    first, second = (part.bounding_box() for part in visible)
    assert first["x"] + first["width"] <= second["x"] + 1 and first["height"] > 50
    assert tab.evaluate(TOO_WIDE)[0] == 0


def test_a_page_without_its_figures_says_how_many_it_lacks(tab, site, tmp_path):
    alone = tmp_path / "sub-01.html"
    alone.write_bytes((site / "sub-01.html").read_bytes())
    show(tab, alone)
    total = tab.locator("img").count()
    assert total > 30
    assert tab.locator("#lost").inner_text().startswith(f"{total} of {total} pictures")


def test_without_script_both_halves_of_a_picture_are_there(browser, site):
    with browser.new_page(java_script_enabled=False) as tab:
        show(tab, site / "sub-02.html", width=390)
        assert tab.locator(".stage").first.bounding_box()["height"] > 50
        assert not tab.locator(".controls").first.is_visible()


def scans(tab) -> list[str]:
    """Names of the scans that the index shows, in its order."""
    return [row.get_attribute("data-scan") for row in tab.locator(".scans tbody tr:visible").all()]


def test_the_table_of_scans_is_sorted_and_narrowed_on_desk_and_phone(tab, site):
    show(tab, site / "index.html")
    assert scans(tab)[:2] == ["sub-03", "sub-01_run-2_T1w"], "what needs attention is first"
    head = tab.locator("th", has_text="Scan").first
    tab.keyboard.press("/")
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.textContent") == "Scan":
            break
    tab.keyboard.press("Enter")
    assert scans(tab) == sorted(scans(tab)) and head.get_attribute("aria-sort") == "ascending"
    tab.keyboard.press("Enter")
    assert scans(tab) == sorted(scans(tab), reverse=True)
    tab.locator("th button", has_text="Time").click()
    assert scans(tab)[0] == "sub-01_ses-1_T1w", "scans without a time are last"
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.locator(".order").select_option(label="Scan")
    assert scans(tab) == sorted(scans(tab))
    tab.locator(".narrow").first.select_option("prepared")
    assert scans(tab) == ["sub-02_T1w"]
    assert tab.locator(".shown").text_content() == "1 of 5 shown"
    tab.locator(".narrow").first.select_option("")
    tab.locator(".find").fill("4 dimensions")
    assert scans(tab) == ["sub-01_run-2_T1w"]


def test_scans_are_rated_by_keys_kept_saved_and_read_back(browser, site, tmp_path):
    folder = shutil.copytree(site, tmp_path / "rated", ignore=shutil.ignore_patterns("*.webp", "*.svg"))
    index = folder / "index.html"
    with browser.new_page() as tab:
        show(tab, index)
        tab.locator("th button", has_text="Scan").click()
        tab.locator("h1").click()
        for key in ("j", "p", "ArrowDown", "k"):  # the failed scan has no result to rate
            tab.keyboard.press(key)
        rated = tab.locator("tr.current")
        assert rated.get_attribute("data-scan") == "sub-01_run-2_T1w" and not rated.get_attribute(
            "data-rating"
        )
        tab.locator("[data-scan='sub-01_ses-1_T1w']").focus()
        tab.keyboard.press("p")
        tab.keyboard.press("d")
        tab.keyboard.press("n")
        tab.keyboard.type('an "odd" fold')
        tab.keyboard.press("Escape")
        assert rated.locator("[aria-pressed=true]").text_content() == "doubt"
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/sub-01.html#*")
        tab.locator(".rate").first.click()
        assert rated.get_attribute("data-scan") == "sub-01_ses-1_T1w", "the same row again"
        assert tab.locator(".rated").text_content() == "1 of 2 rated. 1 change is only in this browser."
        tab.reload()
        assert tab.locator("[aria-pressed=true]").text_content() == "doubt", "kept in the browser"
        with tab.expect_download() as saved:
            tab.locator(".export").click()
        saved.value.save_as(folder / "ratings.tsv")
        tab.locator(".narrow").last.select_option("none")
        assert scans(tab) == ["sub-02_T1w"], "one result is not rated"
        write_index_page(folder)
        show(tab, index)
        assert tab.locator(".rated").text_content() == "1 of 2 rated.", "saved"
        assert tab.locator(".rating input").first.input_value() == 'an "odd" fold'
        tab.locator("[data-rating=doubt] [aria-pressed=true]").click()
        assert tab.locator(".rated").text_content().startswith("0 of 2 rated. 1 change is only"), "taken back"
