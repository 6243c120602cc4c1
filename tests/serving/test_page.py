"""The page in a headless Chromium: what a person sees, types and hears, and what it never asks."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import uvicorn

from sidrec.serving.app import create_app
from sidrec.serving.run import configured
from sidrec.serving.settings import ServeSettings

HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,900",
)  # fmt: skip


@contextmanager
def listening(settings):
    """The application on a real socket of this process."""
    app = create_app(settings)
    running = uvicorn.Server(configured(app, settings))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=running.run, args=([bound],))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        port = bound.getsockname()[1]
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", service=app.state.service)
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def served(bundles, tmp_path_factory):
    """A server whose catalogue holds an item with a hostile title, and a user."""
    store = str(tmp_path_factory.mktemp("page") / "store.sqlite")
    settings = ServeSettings(bundle=bundles.first, store=store, device="cpu", timeout_ms=20_000)
    with listening(settings) as server:
        models, attributes = server.service.models, {"title": HOSTILE}
        models.upsert([{"item_id": "hostile", "attributes": attributes, "available": True}])
        yield server


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A browser; skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("NOT TESTED: the page; needs chromium and chromium-driver (apt-get install)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="the page is tested by selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(chromedriver)
    with webdriver.Chrome(options=options, service=service) as running:
        yield running


class Page:
    """The page as a person has it before them."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        driver.get_log("browser"), driver.get_log("performance")

    def open(self, view="list"):
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#/{view}")

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.until(lambda: self.find(selector))[0]

    def script(self, text, *values):
        """What a line of JavaScript gives; one look, so nothing changes while it is taken."""
        return self.driver.execute_script(f"return {text}", *values)

    def until(self, holds, seconds=120):
        """What `holds` gives once it is true."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, self.driver.find_element("tag name", "body").text
            time.sleep(0.1)
        return found

    def ids(self, selector="#list"):
        """Items of a list once nothing is being asked."""
        self.until(lambda: not self.find("main[aria-busy]") and self.find(f"{selector} > li"))
        return self.listed(f"{selector} > li[data-item]")

    def listed(self, selector):
        """Items of the rows that meet a selector."""
        script = "[...document.querySelectorAll(arguments[0])].map(e => e.dataset.item)"
        return self.script(script, selector)

    def add(self, item_id):
        """Type an id, take the first item found."""
        box, before = self.one("#item-input"), len(self.find("#history li[data-item]"))
        box.send_keys(item_id)
        self.until(lambda: self.find("[role=option]") and item_id in self.text("#item-options"))
        box.send_keys("\ue007")  # Enter
        self.until(lambda: len(self.find("#history li[data-item]")) == before + 1)

    def text(self, selector):
        return self.script("document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def focused(self):
        """What has the focus: tag, id, class, text, level of its list and place in the beam."""
        return SimpleNamespace(**self.script(
            "(e => ({tag: e.tagName, id: e.id, kind: e.className, text: e.textContent, "
            "level: e.closest('section')?.getAttribute('aria-label') ?? '', "
            "depth: e.dataset.depth, does: e.dataset.does}))(document.activeElement)"
        ))  # fmt: skip

    def press(self, *keys):
        """Keys to whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def faults(self):
        """Errors and policy violations of the console."""
        return [entry["message"] for entry in self.driver.get_log("browser")
                if entry["level"] == "SEVERE"]  # fmt: skip

    def hosts(self):
        """Hosts that were asked for anything."""
        said = [json.loads(entry["message"])["message"]
                for entry in self.driver.get_log("performance")]  # fmt: skip
        urls = [urlsplit(m["params"]["request"]["url"]) for m in said
                if m["method"] == "Network.requestWillBeSent"]  # fmt: skip
        return {url.netloc for url in urls if url.scheme.startswith(("http", "ws"))}


@pytest.fixture
def page(driver, served):
    """The page; whatever a test did, the console stays clean and only its server was asked."""
    page = Page(driver, served.url)
    yield page
    assert page.faults() == []
    assert page.hosts() == {urlsplit(served.url).netloc}


def test_a_history_is_answered_with_titles_reasons_and_why(page, served, bundles):
    page.open()
    assert len(page.ids()) == 10 and "popular" in page.text("#list-note")
    for item in bundles.history:
        page.add(item)
    page.until(lambda: f"After {len(bundles.history)} items" in page.text("#list-note"))
    frame = served.service.models.current.recommender.recommend(bundles.history, k=10)
    assert page.ids() == frame["item_id"].to_list()
    title, codes = frame["title"][0], frame["semantic_id"][0]
    assert page.text("#list > li .title") == title and page.text("#list > li .reason")
    shown = page.script("[...document.querySelectorAll('#list .sid')][0].children.length")
    assert shown == len(codes) and page.text("#list .sid") == "".join(map(str, codes))
    page.one("#list .buttons button").click()
    page.until(lambda: page.find("#list .why table"))
    assert "What the generator makes of each code" in page.text("#list .why")
    assert len(page.find("#list .why .meter")) == len(codes)
    page.until(lambda: "10 recommendations" in page.text("#said"))


def test_a_hostile_title_is_text(page):
    page.open()
    page.add("hostile")
    assert page.text("#history .title") == HOSTILE
    page.open("tree")
    page.until(lambda: page.find("#columns a"))
    assert page.driver.title == "sidrec" and not page.find("img[src=x]")
    assert page.script("document.scripts.length") == 1


def test_the_beam_tree_and_lists_are_walked_by_keys_alone(page, bundles):
    tab, enter, down, right, left = "\ue004", "\ue007", "\ue015", "\ue014", "\ue012"
    page.open("beam")
    page.until(lambda: "needs a history" in page.text("#beam-note"))
    page.press(tab)
    assert page.focused().kind == "skip"
    page.press(enter)
    assert page.focused().id == "main" and "#/beam" in page.driver.current_url
    page.open("beam")
    page.press(tab, tab)
    assert page.focused().id == "item-input"
    page.press(bundles.history[0])
    page.until(lambda: bundles.history[0] in page.text("#item-options"))
    page.press(down, enter)
    page.until(lambda: page.find("button.prefix"))
    seen = set()
    for _ in range(40):
        page.press(tab)
        seen.add(page.focused().id)
        if "prefix" in page.focused().kind:
            break
    assert {"example", "user", "system", "k", "seen", "whole"} <= seen
    assert page.script("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(right)
    assert page.focused().depth == "1"
    assert len(page.find("button.prefix.lit")) >= 2 and "×" in page.text("#beam-detail")
    page.press(left)
    assert page.focused().depth == "0"
    masses = page.script(
        "[...document.querySelectorAll('#beam .mass')].map(e => e.getAttribute('aria-label'))"
    )
    assert len(masses) == bundles.recommender.ids.num_levels
    assert all("kept" in said and "no such item" in said for said in masses)
    page.open("tree")
    page.until(lambda: page.find("#columns a[tabindex='0']"))
    page.script("document.querySelector('#columns a[tabindex]').focus()")
    page.press(down)
    page.press(right)
    page.until(lambda: len(page.find("#columns section")) == 2)
    page.until(lambda: page.focused().level == "Level 0")
    page.until(lambda: page.focused().level == "Level 1" or page.press(right))  # once it is loaded
    assert page.ids("#shelf")


def test_an_edit_of_the_history_changes_the_list_and_marks_what_moved(page, bundles):
    page.open()
    for item in bundles.history[:2]:
        page.add(item)
    page.one("nav a[href='#/what-if']").click()
    before = page.ids("#after")
    assert page.ids("#before") == before
    page.until(lambda: len(page.find("#weights tbody tr")) == 2)
    page.one("#history [data-does=Remove]").click()
    after = page.until(lambda: page.ids("#after") != before and page.ids("#after"))
    assert page.ids("#before") == before
    assert bundles.history[1] not in after
    gone = page.listed("#before > li:has(.mark.gone)")
    new = page.listed("#after > li:has(.mark.new)")
    assert set(gone) == set(before) - set(after) and set(new) == set(after) - set(before)
    assert "History of 2 before, 1 now" in page.text("#what-if-note")
    assert page.focused().does == "Remove"


def test_two_models_are_shown_side_by_side(page, bundles):
    page.open("side-by-side")
    page.add(bundles.history[0])
    page.until(lambda: "right: second" in page.text("#sides-note"))
    assert len(page.ids("#left")) == len(page.ids("#right")) == 10
    assert len(page.find("#right .mark")) == 10
    page.open("search")
    page.until(lambda: "no search part" in page.text("#search-note"))


def test_a_text_is_searched_with_and_without_the_history(driver, searching, bundles, tmp_path):
    store, enter, recommender = str(tmp_path / "store.sqlite"), "\ue007", searching.recommender
    with listening(ServeSettings(bundle=searching.path, store=store, device="cpu")) as server:
        page = Page(driver, server.url)
        page.open("search")
        page.until(lambda: "Type what you look for" in page.text("#search-note"))
        page.one("#query").send_keys(searching.query, enter)
        plain = recommender.search(searching.query, k=10)
        assert page.ids("#found") == plain["item_id"].to_list()
        assert page.text("#found > li .title") == plain["title"][0]
        assert page.text("#found > li .reason") == "answers the query"
        assert "10 items" in page.text("#search-note") and "10 items" in page.text("#said")
        page.one("#found .buttons button").click()  # puts the item into the history
        page.until(lambda: page.find("#history li[data-item]"))
        assert page.listed("#history li[data-item]") == plain["item_id"].to_list()[:1]
        page.add(bundles.history[0])
        history = [plain["item_id"][0], bundles.history[0]]
        page.one("#personal").click()
        page.one("#view-search button[type=submit]").click()
        personal = recommender.search(searching.query, history=history, k=10)
        personal = personal["item_id"].to_list()
        assert personal != plain["item_id"].to_list()
        page.until(lambda: page.ids("#found") == personal)
        page.one("#query").clear()
        page.one("#query").send_keys("\u9774", enter)
        page.until(lambda: "0 items" in page.text("#search-note"))
        assert page.faults() == [] and page.hosts() == {urlsplit(server.url).netloc}


def test_the_page_fits_400_pixels_and_follows_dark_mode(page, bundles):
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    try:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for view in ("list", "tree", "what-if"):
            page.open(view)
            page.until(lambda: page.find("main li[data-item]"))
            assert page.script("document.documentElement.scrollWidth") <= 400, view
        assert page.script("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_server_with_keys_asks_for_one_and_the_page_keeps_it_in_memory(
    driver, bundles, keys_file, keys_of, tmp_path
):
    store = str(tmp_path / "store.sqlite")
    settings = ServeSettings(bundle=bundles.first, store=store, device="cpu", keys_file=keys_file)
    with listening(settings) as server:
        page = Page(driver, server.url)
        page.open()
        page.until(lambda: page.one("#key-form").is_displayed())
        assert "needs an API key" in page.text("#problem") and not page.find("#list > li")
        page.one("#key").send_keys(keys_of["secret"], "\ue007")
        assert len(page.ids()) == 10 and not page.one("#key-form").is_displayed()
        stored = "localStorage.length + sessionStorage.length + document.cookie.length"
        assert page.script(stored) == 0
        assert all("401" in fault for fault in page.faults())
        page.hosts()
