"""A real Chromium, and the page as a person sees and uses it."""

import shutil
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.support.ui import WebDriverWait

from mimic_engine.server.app import create_app
from mimic_engine.server.lifecycle import bind
from mimic_engine.server.settings import Settings
from mimic_engine.types import Entity, Mention
from tests.batching.device import wait_ready

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *(
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
    ),
    *("disable-component-update", "disable-sync", "window-size=1280,900"),
)
WAIT_S = 20


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser with a fresh profile, or a skip."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with chromedriver on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("red.png", "red"), ("green.png", "green")):
        Image.new("RGB", (40, 30), colour).save(folder / name)
    Image.new("RGB", (40, 30)).save(folder / "moving.gif")
    return folder


class Page:
    """The page, as a person sees and uses it."""

    def __init__(self, driver, address, service, asked):
        self.driver, self.address, self.service, self.asked = driver, address, service, asked

    def open(self):
        self.driver.get(self.address)
        self.wait(lambda: self.text("status") or self.shown("problem"))
        return self

    def wait(self, condition):
        return WebDriverWait(self.driver, WAIT_S, 0.05).until(lambda _: condition())

    def at(self, element_id):
        return self.driver.find_element("id", element_id)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, element_id):
        return self.at(element_id).text

    def shown(self, element_id):
        return self.at(element_id).is_displayed()

    def value(self, element_id):
        return self.at(element_id).get_property("value")

    def marked(self):
        return [mark.get_property("textContent") for mark in self.all("#ink mark")]

    def names(self):
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#ranking:not(.stale) .name')].map(n => n.firstChild.textContent)"
        )

    def wait_for(self, *names):
        self.wait(lambda: self.names()[: len(names)] == list(names))

    def type(self, sentence):
        self.at("sentence").clear()
        self.at("sentence").send_keys(sentence)

    @contextmanager
    def seen_at(self, width, scheme="light"):
        """Reload the page in a window of this many CSS pixels, and go back to the usual one afterwards."""
        view = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        try:
            yield self.open()
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def width_of(self, selector):
        """CSS pixels that the content of an element needs, and those that it has."""
        return self.driver.execute_script(
            "const e = document.querySelector(arguments[0]); return [e.scrollWidth, e.clientWidth]", selector
        )

    def place_of(self, word):
        """Where a word of the sentence stands on the screen: the middle of its box."""
        return self.driver.execute_script(
            """
            const walk = document.createTreeWalker(document.getElementById("ink"), NodeFilter.SHOW_TEXT);
            while (walk.nextNode()) {
              const at = walk.currentNode.data.indexOf(arguments[0]);
              if (at < 0) continue;
              const range = document.createRange();
              range.setStart(walk.currentNode, at);
              range.setEnd(walk.currentNode, at + arguments[0].length);
              const box = range.getBoundingClientRect();
              return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)];
            }
            """,
            word,
        )

    def double_click(self, word):
        actions = ActionBuilder(self.driver)
        actions.pointer_action.move_to_location(*self.place_of(word)).double_click()
        actions.perform()

    def drop(self, file):
        """Drop a file from outside onto the page."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 300, "y": 300, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def complaints(self):
        """What the browser's console says, but for answers that are errors on purpose."""
        return [
            e["message"]
            for e in self.driver.get_log("browser")
            if "Failed to load resource" not in e["message"]
        ]


@pytest.fixture
def open_page(chromium):
    """``with open_page(app) as page``: the application on a real socket, and its page in the browser."""

    @contextmanager
    def run(app, asked=()):
        with bind("127.0.0.1", 0) as taken:
            taken.listen()  # the application is ready a moment before uvicorn listens
            server = uvicorn.Server(uvicorn.Config(app, log_config=None))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
            thread.start()
            assert wait_ready(app.state.service.batcher, WAIT_S)
            try:
                chromium.get_log("browser")  # what earlier tests left
                address = "http://{}:{}/".format(*taken.getsockname())
                yield (page := Page(chromium, address, app.state.service, asked)).open()
                assert page.complaints() == []
            finally:
                chromium.get("about:blank")
                server.should_exit = True
                thread.join(WAIT_S)

    return run


@pytest.fixture
def serve_page(open_page, linker, pictures):
    """``with serve_page(setting=value, ...) as page``: the page of the small linker, with examples."""
    red, green = (str(pictures / name) for name in ("red.png", "green.png"))
    entities = [*linker.index.entities, Entity("Q9", "Red Apple", "fruit of the east", (red,), "fruit")]
    linker.index = type(linker.index)(entities)
    examples = [
        Mention("Jordan", "the river Jordan in the east", green),
        Mention("Jordan", "the river Jordan in the east"),
        Mention("Apple", "an American company called Apple"),
    ]
    asked, prepare = [], linker.prepare

    def remember(mention, *options):
        asked.append(mention)
        return prepare(mention, *options)

    linker.prepare = remember

    @contextmanager
    def run(**options):
        with open_page(create_app(linker, Settings(**options), examples=examples), asked) as page:
            try:
                yield page
            finally:
                linker.gate.set()

    return run
