"""The pages in a real browser, from files, as a reader opens them."""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from kompakt.compressor.evaluation.report import formats
from kompakt.compressor.evaluation.report.page import render_report, render_view

pytestmark = [pytest.mark.slow, pytest.mark.browser]

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,900"
).split()


def _chromium():
    browser, helper = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        browser = None
    if not browser or not helper:
        why = "these tests need chromium, chromedriver and selenium"
        # CI must not lose them in silence
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # with a path of its own Selenium looks for no driver to download
    return options, lambda: webdriver.Chrome(service=Service(executable_path=helper), options=options)


@pytest.fixture(scope="module")
def driver():
    options, start = _chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options.add_argument(f"--user-data-dir={folder}")
        started = start()
        try:
            yield started
        finally:
            started.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, summary, view, hostile, hostile_one, empty):
    made = tmp_path_factory.mktemp("pages")
    pages = {
        "report": render_report(summary),
        "view": render_view(view),
        "hostile": render_report(hostile),
        "hostile_view": render_view(hostile_one),
        "empty": render_report(empty),
    }
    for name, html in pages.items():
        (made / f"{name}.html").write_bytes(html.encode("utf-8"))
    return made


@pytest.fixture
def open_page(driver, folder):
    from selenium.webdriver.support.wait import WebDriverWait

    def opened(name, *, width=1280, theme="light"):
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get("about:blank")
        for log in ("browser", "performance"):
            driver.get_log(log)
        driver.get((folder / f"{name}.html").as_uri())
        # a busy machine can be told of the blank page's end
        script = "return document.readyState === 'complete' && location.protocol === 'file:'"
        WebDriverWait(driver, 30).until(lambda one: one.execute_script(script))
        return driver

    return opened


@contextmanager
def no_scripts(driver):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def requests(driver):
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


def find(driver, selector):
    return driver.find_element("css selector", selector)


def choose(driver, selector, value):
    from selenium.webdriver.support.select import Select

    Select(find(driver, selector)).select_by_value(value)


def point_at(driver, element):
    from selenium.webdriver.common.action_chains import ActionChains

    # the middle of text that wraps may lie on its neighbour
    script = (
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'});"
        "const box = arguments[0].getClientRects()[0]; return [box.x + 4, box.y + box.height / 2].map(Math.round)"
    )
    actions = ActionChains(driver)
    actions.w3c_actions.pointer_action.move_to_location(*driver.execute_script(script, element))
    actions.perform()


def count_shown(driver, selector):
    script = "return [...document.querySelectorAll(arguments[0])].filter((n) => n.getClientRects().length).length"
    return driver.execute_script(script, selector)


@pytest.mark.parametrize("name", ["report", "view", "hostile", "hostile_view", "empty"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_load_alone_in_silence_and_never_scroll_sideways(open_page, folder, name, width):
    driver = open_page(name, width=width)
    # everything that a reader can unfold must fit as well
    driver.execute_script("for (const node of document.querySelectorAll('details')) node.open = true")
    assert driver.execute_script("return document.scrollingElement.scrollWidth") <= width
    assert driver.get_log("browser") == []
    # the browser writes the address of an empty icon as it likes
    assert {url for url in requests(driver) if not url.startswith("data:")} == {(folder / f"{name}.html").as_uri()}
    assert driver.execute_script("return window.hacked === undefined && !document.querySelector('img')")


def test_the_metric_that_is_chosen_is_shown_in_every_chart(open_page, summary):
    driver = open_page("report")
    panels = len(summary.tasks) + 1
    for index in ("0", "3"):
        choose(driver, "#metric", index)
        assert count_shown(driver, f".panels [data-metric='{index}']") == panels
        assert count_shown(driver, ".panels [data-metric]") == panels


def test_a_method_can_be_hidden_in_every_chart(open_page, summary):
    driver = open_page("report")
    index = [method.name for method in summary.methods].index("lexical")
    before = count_shown(driver, f"svg .m-{index}")
    assert before >= len(summary.tasks)
    box = find(driver, f"input[data-series='m-{index}']")
    box.click()
    assert count_shown(driver, f".series.m-{index}") == 0
    assert count_shown(driver, f"svg .m-{index + 1}")
    box.click()
    assert count_shown(driver, f"svg .m-{index}") == before
    find(driver, "#hide-all").click()
    assert count_shown(driver, ".series") == 0
    find(driver, "#show-all").click()
    assert count_shown(driver, f"svg .m-{index}") == before


def test_a_chart_follows_the_theme(open_page):
    def colours():
        script = (
            "const style = (s) => getComputedStyle(document.querySelector(s));"
            "return [style('.panels .m-4 path').stroke, style('.panels svg text').fill,"
            " style('body').backgroundColor]"
        )
        return driver.execute_script(script)

    driver = open_page("report", theme="light")
    light = colours()
    driver = open_page("report", theme="dark")
    dark = colours()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    button = find(driver, "#theme")
    button.click()
    assert (button.text, colours()) == ("Theme: light", light)
    button.click()
    assert (button.text, colours()) == ("Theme: dark", dark)
    button.click()
    assert button.text == "Theme: system"


def test_the_drill_down_shows_every_source_exactly(open_page, summary):
    driver = open_page("report")
    example = summary.examples[0]
    for view in example.views:
        choose(driver, "#pick-method", view.method)
        choose(driver, "#pick-budget", formats.asked(view.keep))
        found = driver.execute_script(
            "return [...document.querySelectorAll('#documents .source[aria-label^=Text]')].map((box) =>"
            " [box.textContent, [...box.querySelectorAll(':scope > span')].map((span) =>"
            " [span.textContent, span.classList.contains('k')])])"
        )
        assert [text for text, _ in found] == [document.text for document in view.documents]
        for (_, spans), document in zip(found, view.documents, strict=True):
            assert spans == [[document.text[piece.start : piece.end], piece.is_kept] for piece in document.pieces]
        if not view.documents[0].pieces:
            assert find(driver, "#documents .source").get_property("textContent") == view.text


def test_another_task_brings_its_examples(open_page, summary):
    driver = open_page("report")
    choose(driver, "#pick-task", "Repository completion")
    own = [example for example in summary.examples if example.task == "repo"]
    labels = [option.text for option in find(driver, "#pick-example").find_elements("css selector", "option")]
    assert labels == [example.id for example in own]
    assert own[0].question in find(driver, "#question").text
    assert count_shown(driver, "#documents mark")
    assert {mark.text for mark in driver.find_elements("css selector", "#documents mark")} == {"return self.items"}


def test_a_cell_of_the_overview_opens_its_view(open_page, summary):
    driver = open_page("report")
    buttons = driver.find_elements("css selector", "#overview button")
    assert len(buttons) == len(summary.examples[0].views)
    driver.execute_script("arguments[0].click()", buttons[-1])
    view = summary.examples[0].views[-1]
    assert find(driver, "#shown").text == f"{view.method}, asked {formats.asked(view.keep)}"
    assert buttons[-1].get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("name", ["report", "view"])
def test_stage_and_score_are_told_to_pointer_and_keys(open_page, name):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = open_page(name)
    spans = driver.find_elements("css selector", ".source[role=group]")[0].find_elements("css selector", "span")
    titles = [span.get_attribute("title") for span in spans]
    at = next(index for index, title in enumerate(titles) if " by " in title and ", score " in title)
    point_at(driver, spans[at])
    assert find(driver, "#status").text == titles[at]
    driver.execute_script("arguments[0].focus()", spans[0])
    assert find(driver, "#status").text == titles[0]
    ActionChains(driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert driver.switch_to.active_element == spans[1]
    assert find(driver, "#status").text == titles[1]
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    assert not find(driver, "#status").is_displayed()


def test_paired_differences_can_be_narrowed(open_page, summary):
    driver = open_page("report")
    shown = [one for one in summary.differences if not one.task and one.metric == "answer_recall"]
    assert count_shown(driver, "#difference-table tbody tr") == len(shown)
    driver.execute_script("arguments[0].click()", find(driver, "#difference-sure"))
    sure = [one for one in shown if one.estimate.low > 0 or one.estimate.high < 0]
    assert count_shown(driver, "#difference-table tbody tr") == len(sure)


def test_dropped_text_can_be_hidden(open_page):
    driver = open_page("view")
    assert count_shown(driver, ".source .d")
    driver.execute_script("arguments[0].click()", find(driver, "#hide-dropped"))
    assert count_shown(driver, ".source .d") == 0
    assert count_shown(driver, ".source .k")


def test_pages_read_without_scripts(open_page, driver, view):
    with no_scripts(driver):
        open_page("view")
        sources = driver.find_elements("css selector", ".source[role=group]")
        # the parser writes the ends of lines in one way, but for those that are spelt out
        assert [source.get_property("textContent") for source in sources] == [one.text for one in view.documents]
        assert not find(driver, "#theme").is_displayed()
        open_page("report")
        charts = driver.find_elements("css selector", ".panels figure div[data-metric]:not([hidden])")
        assert len(charts) == 10
        assert "need JavaScript" in find(driver, "noscript").text


def test_text_meets_the_contrast_that_readers_need(open_page):
    """Every text of the page stands at 4.5 to 1 or more on what is behind it, in both themes."""
    script = (Path(__file__).parent / "contrast.js").read_text("utf-8")
    for theme in ("light", "dark"):
        for name in ("report", "view"):
            assert open_page(name, theme=theme).execute_script(script) == []
