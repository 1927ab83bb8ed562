"""The page in a real browser without network access."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from nanolm.analysis.collection import find
from nanolm.analysis.comparison import compare
from nanolm.cli import main as cli
from nanolm.report.contents import gather
from nanolm.report.html import MissingMap, to_html, to_script
from nanolm.runs.directory import RunDirectory
from tests.browser import SIZES, Browser
from tests.helpers import mostly_slow
from tests.run_fixtures import LONG_NAME, make_run
from tests.runs.made import make_run as written_run

pytest.importorskip("plotly", reason="the extra nanolm[report] is not installed")


SINGLE_SEEDS = "#curve-controls button[value=single]"


def open_report(browser: Browser, page: Path, size: str = "desktop", theme: str = "light") -> None:
    """Open a report, and wait until all plots are drawn."""
    browser.open(page.as_uri(), size, theme)
    browser.wait(
        "return document.querySelector('#contents a') && document.querySelector('#loss .xtitle') && "
        "[...document.querySelectorAll('.plot')].every((e) => !e.offsetParent || e.querySelector('.main-svg'))"
    )


def write_report(runs: Path, path: Path, *arguments: str) -> None:
    assert cli.run(["report", str(runs), "-o", str(path), *arguments]) == 0


@pytest.fixture(scope="module")
def report(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of twenty runs, with the attention of two."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(sweep, path, "--text", "12 and 13 make 25", "1 and 2", "--maps", "2")
    return path


@pytest.mark.parametrize(
    ("size", "theme"),
    mostly_slow(itertools.product(SIZES, ("light", "dark")), quick=(("phone", "light"), ("desktop", "dark"))),
)
def test_page_opens_without_errors_or_requests(
    browser: Browser, report: Path, size: str, theme: str, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the extra nanolm[plot] is not installed")
    open_report(browser, report, size, theme)
    pixels = browser.picture(tmp_path / f"{size}_{theme}.png")
    assert browser.console_messages() == []
    assert browser.requests() - {"data", "blob"} == {report.as_uri()}
    width = SIZES[size][0]
    assert pixels.shape[1] == width
    assert browser.js("return document.documentElement.scrollWidth") == width
    background = pixels[:, :4].mean()
    assert background > 0.9 if theme == "light" else background < 0.15
    for name in ("loss", "lr", "grad-norm", "parallel", "map", "weights", "mask"):
        box = browser.js(
            "const box = document.getElementById(arguments[0]).getBoundingClientRect();"
            "return [box.x, box.y + scrollY, box.width, box.height]",
            name,
        )
        x, y, w, h = map(int, box)
        part = pixels[y : y + h, x : min(x + w, width)][::3, ::3].reshape(-1, 3)
        shades = np.unique((part * 255).astype(int) // 16, axis=0)
        assert len(shades) > 8, f"{name} is blank"


@pytest.mark.slow
def test_axes_can_be_changed(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    seen = {}
    for place in ("tokens", "flops", "seconds", "step"):
        browser.click(f"#curve-controls button[value={place}]")
        title = browser.wait("const t = document.querySelector('#loss .xtitle'); return t && t.textContent")
        seen[place] = (title, browser.js("return document.getElementById('loss').layout.xaxis.type"))
        assert browser.texts("#lr .xtitle") == browser.texts("#grad-norm .xtitle") == [title]
    assert seen == {
        "tokens": ("training tokens", "linear"),
        "flops": ("training FLOPs (by formula)", "linear"),
        "seconds": ("training seconds", "linear"),
        "step": ("step", "linear"),
    }
    last = "return Math.max(...document.getElementById('loss').data.map((each) => each.x.at(-1)))"
    assert browser.js(last) == 6
    browser.click("#curve-controls button[value=tokens]")
    assert browser.js(last) == 6 * 4 * 16
    for axis, which in (("xaxis", "x scale"), ("yaxis", "y scale")):
        browser.click(f"#curve-controls [aria-label='{which}'] button[value=log]")
        assert browser.js(f"return document.getElementById('loss').layout.{axis}.type") == "log"
    browser.click("#curve-controls button[value=bits_per_byte]")
    assert browser.texts("#loss .ytitle") == ["bits per byte"]
    assert browser.js("return document.querySelector('#curve-controls button[value=train]').disabled")
    assert browser.console_messages() == []


def test_legend_hides_runs(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    browser.click(SINGLE_SEEDS)
    names = browser.texts("#legend .label")
    assert len(set(names)) == 20
    (shortened,) = [name for name in names if "…" in name]
    assert LONG_NAME.startswith(shortened.split("…")[0])
    assert LONG_NAME.endswith(shortened.split("…")[1])
    titles = browser.js("return [...document.querySelectorAll('#legend button')].map((each) => each.title)")
    assert any(title.startswith(LONG_NAME + "\n") for title in titles)
    drawn = "return document.getElementById('loss').data.length"
    assert browser.js(drawn) == 20
    browser.click("#legend button")
    assert browser.js(drawn) == 19
    assert browser.js("return document.getElementById('lr').data.length") == 19
    browser.js("[...document.querySelectorAll('#legend .plain')].find((each) => each.textContent === 'best 5').click()")
    assert browser.js(drawn) == 5
    assert browser.console_messages() == []


def test_seeds_are_drawn_as_their_mean_with_a_band(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    data = browser.js("return document.getElementById('loss').data.map(({ name, y, fill }) => [name, y, fill ?? null])")
    # Ten rows of two seeds: the lower and the upper edge of the band, and the mean.
    assert len(data) == 30
    for (_, low, _), (_, high, fill), (_, mean, _) in zip(data[::3], data[1::3], data[2::3], strict=True):
        assert fill == "tonexty"
        assert mean == pytest.approx([(one + other) / 2 for one, other in zip(low, high, strict=True)], rel=1e-5)
    browser.click(SINGLE_SEEDS)
    assert browser.js("return document.getElementById('loss').data.length") == 20


def test_differences_to_the_best_row_are_drawn(browser: Browser, report: Path, sweep: Path) -> None:
    open_report(browser, report)
    x, intervals = browser.js(
        "const [{ x, error_x }] = document.getElementById('forest').data; return [x, error_x.array]"
    )
    compared = compare(find([sweep]))
    found = [row.difference for row in compared.rows if row.difference is not None]
    assert x == pytest.approx([one.effect for one in found])
    assert intervals == pytest.approx([one.interval for one in found])
    assert "differs from best: t-test paired by seed" in browser.js(
        "return document.getElementById('tests').textContent"
    )


def test_each_run_has_one_colour_everywhere(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    browser.click(SINGLE_SEEDS)
    looks = browser.js("""
        const found = {};
        for (const id of ["loss", "lr", "grad-norm", "parallel"]) {
          for (const { name, line } of document.getElementById(id).data) {
            (found[name] ??= new Set()).add(line.color + line.dash);
          }
        }
        return Object.values(found).map((each) => [...each]);""")
    assert len(looks) == 20
    assert all(len(each) == 1 for each in looks)
    assert len({each[0] for each in looks}) == 20


@pytest.mark.slow
def test_smoothing_does_not_change_validation_curves(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    browser.click(SINGLE_SEEDS)
    browser.click("#curve-controls button[value=both]")
    curves = (
        "return document.getElementById('loss').data.map((each) => [each.hovertemplate?.includes('val loss'), each.y])"
    )
    before = browser.js(curves)
    browser.js("""const slider = document.querySelector('#curve-controls input');
        slider.value = 0.9; slider.dispatchEvent(new Event('input'));""")
    after = browser.js(curves)
    assert sorted(y for is_val, y in before if is_val) == sorted(y for is_val, y in after if is_val)
    train_before, train_after = ([y for is_val, y in each if not is_val] for each in (before, after))
    assert len(train_before) == len(train_after) == 20
    for raw, smooth in zip(train_before, train_after, strict=True):
        assert smooth[0] == pytest.approx(raw[0])
        assert np.ptp(smooth) < np.ptp(raw)


def test_results_are_sorted_by_clicking(browser: Browser, report: Path, sweep: Path) -> None:
    open_report(browser, report)
    heads = browser.texts("#table th")
    assert heads[:5] == ["run", "val loss final", "model", "lr", "seed"]
    losses = [float(text) for text in browser.texts("#table td:nth-child(2)")]
    assert losses == sorted(losses)
    (best,) = [row for row in compare(find([sweep])).rows if row.is_best]
    (headline,) = browser.texts("#summary")
    assert f"The best setting is {best.describe()} with {best.estimates['val_loss'].mean:.4f} ±" in headline
    assert "nats per token on the validation text (val loss final), the mean of 2 runs" in headline
    browser.click("#table th:nth-child(4) button")
    assert browser.texts("#table td:nth-child(4)") == [
        lr for lr in ("0.001", "0.003", "0.01", "0.03", "0.1") for _ in range(4)
    ]
    browser.click("#table th:nth-child(4) button")
    assert browser.texts("#table td:nth-child(4)")[0] == "0.1"


@pytest.mark.slow
def test_heat_map_of_two_settings(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    cells = "return document.getElementById('map').data[0].z.flat().length"
    assert browser.js(cells) == 10
    assert set(browser.texts("#map .xtitle") + browser.texts("#map .ytitle")) == {"model", "optimizer.lr"}
    browser.js("""const list = document.querySelector('#map-controls select[aria-label="y axis"]');
        list.value = 'seed'; list.dispatchEvent(new Event('change'));""")
    assert browser.texts("#map .ytitle") == ["seed"]
    assert browser.js(cells) == 10
    titles = [
        text
        for text in browser.texts("#parallel .annotation-text")
        if text in ("model", "lr", "seed", "val loss final")
    ]
    assert titles == ["model", "lr", "seed", "val loss final"]


@pytest.mark.slow
def test_samples_follow_the_slider(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    assert len(browser.texts(".card")) == 4
    assert all(text.startswith("step 6, val loss") for text in browser.texts(".card .at"))
    browser.js("""const slider = document.querySelector('#sample-controls input');
        slider.value = 0; slider.dispatchEvent(new Event('input'));""")
    assert all(text.startswith("step 3, val loss") for text in browser.texts(".card .at"))
    browser.click("#more-samples")
    assert len(browser.texts(".card")) == 20


def test_losses_per_token_follow_their_controls(browser: Browser, report: Path, text: Path) -> None:
    open_report(browser, report)
    shown = "".join(browser.texts("#tokens span")).replace("⏎", "")
    assert shown
    assert shown in text.read_text()
    note = browser.texts("#losses-note")
    colours = (
        "return [...document.querySelectorAll('#tokens span')].map((each) => getComputedStyle(each).backgroundColor)"
    )
    before = browser.js(colours)
    assert len(set(before)) > 8, "tokens have shades of two colours"
    browser.js(
        "const list = document.querySelector('#losses-controls [aria-label=\"second run\"]'); list.value = 2;"
        "list.dispatchEvent(new Event('change'))"
    )
    assert browser.js(colours) != before
    assert browser.texts("#losses-note") != note
    assert browser.console_messages() == []


def test_attention_follows_its_controls(browser: Browser, report: Path) -> None:
    open_report(browser, report)
    assert browser.texts("#heads button") == ["head 0", "head 1"]
    first = browser.js("return document.getElementById('weights').data[0].z")
    assert len(first) == 16
    assert all(sum(value or 0 for value in row) == pytest.approx(1, abs=0.01) for row in first)
    browser.click("#heads button:nth-child(2)")
    assert browser.texts("#weights-title") == ["Layer 0, head 1: attention weights"]
    assert browser.js("return document.getElementById('weights').data[0].z") != first
    browser.js("""for (const [name, value] of [["text", 1], ["layer", 1]]) {
          const list = document.querySelector(`#attention-controls select[aria-label=${name}]`);
          list.value = value; list.dispatchEvent(new Event('change'));
        }""")
    assert browser.texts("#mask-title") == ["Layer 1: mask causal"]
    assert browser.js("return document.getElementById('mask').data[0].z.length") == 7
    assert browser.texts("#weights .xtick text")[:3] == ["1", "␣", "a"]
    assert "the model bigram has no attention" in browser.texts("#attention-note")[0]


@pytest.mark.slow
def test_theme_toggle(browser: Browser, report: Path) -> None:
    open_report(browser, report, theme="dark")
    colour = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.js(colour)
    browser.click("#theme")
    light = browser.js(colour)
    assert (dark, light) == ("rgb(17, 20, 23)", "rgb(246, 247, 248)")
    assert browser.js("return document.getElementById('loss').layout.font.color") == "#1b2126"


def test_commands_that_reproduce_runs(browser: Browser, report: Path, sweep: Path) -> None:
    open_report(browser, report)
    assert len(browser.texts("#reproductions details")) == 20
    shown = browser.texts("#reproductions pre")
    assert sum(text.startswith("nanolm train dataset=text") for text in shown) == 20
    assert (sweep / "gpt_0.01_2" / "config.yaml").read_text() in shown


@pytest.mark.slow
def test_one_run_and_runs_of_several_tokenizers(browser: Browser, pair: Path, text: Path, tmp_path: Path) -> None:
    write_report(pair / "bigram", tmp_path / "one.html")
    open_report(browser, tmp_path / "one.html")
    assert browser.js("return document.getElementById('settings').hidden")
    assert browser.texts("#attention-note") == ["No attention map: bigram (the model bigram has no attention)."]
    make_run(tmp_path / "bytes", text, "model=bigram", "tokenizer=byte", "trainer.max_steps=2")
    write_report(pair, tmp_path / "several.html", str(tmp_path / "bytes"), "--maps", "0")
    open_report(browser, tmp_path / "several.html", "phone")
    assert "2 different tokenizers" in browser.texts("#notes")[0]
    assert browser.texts("#tokens span")
    write_report(pair / "gpt", tmp_path / "other.html", str(tmp_path / "bytes"), "--maps", "0")
    open_report(browser, tmp_path / "other.html")
    assert browser.texts("#losses-note")[0].startswith(
        "Not shown: no two of these runs have the same validation tokens"
    )
    open_report(browser, tmp_path / "several.html", "phone")
    assert browser.texts("#loss .ytitle") == ["bits per byte"]
    assert browser.js("return document.querySelector('#curve-controls button[value=loss]').disabled")
    assert browser.console_messages() == []


@pytest.mark.slow
def test_the_status_of_a_sweep_is_shown(browser: Browser, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    done, running = (sweep / f"seed={number}-{number:010x}" for number in range(2))
    written_run(done, losses=[3.0, 2.0], status="completed", max_steps=20)
    written_run(running, losses=[3.0], status="running", max_steps=20)
    failed = sweep / "seed=2-00000000aa"
    failed.mkdir()
    (failed / "error.txt").write_text("<b>no memory</b>\n  hint:  smaller\n")
    with RunDirectory(running).claim():
        write_report(sweep, tmp_path / "report.html", "--token-losses", "0", "--maps", "0")
    open_report(browser, tmp_path / "report.html")
    text = browser.js("return document.getElementById('sweep').innerText")
    assert "1 of 3 jobs done, 1 running, 1 failed, 0 left" in text
    assert "Best so far: 2.0000 nats per token" in text
    assert "<b>no memory</b>" in text
    assert f"process {os.getpid()}" in text
    assert "hint" not in text


def test_data_cannot_end_the_script_element() -> None:
    nuisance = {"name": "</script><!--<script>", "lines": "\u2028\u2029"}
    text = to_script(nuisance)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == nuisance
    assert to_script([float("nan"), float("inf")]) == "[null,null]"


def test_page_is_self_contained(pair: Path) -> None:
    page = to_html(gather(find([pair])), [], [MissingMap("bigram", "of reasons")])
    head = page[: page.index("<style>")]
    assert "default-src 'none'" in head
    assert "unsafe-eval" not in head
    for outward in (" src=", '<link rel="stylesheet', "@import", "url("):
        assert outward not in page[: page.index("plotly.js v")]
    assert page.count("</script>") == 3
