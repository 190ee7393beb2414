"""Asking through the page: examples, a selection, pictures, errors, overload, and the keyboard alone."""

import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from mimic_engine.types import Entity

pytestmark = pytest.mark.slow
WAIT_S = 20


def test_the_first_example_is_answered_at_once(serve_page):
    with serve_page() as page:
        page.wait_for("Jordan River")
        assert page.value("sentence") == "the river Jordan in the east"
        assert page.marked() == ["Jordan"]
        assert page.shown("preview")
        assert "5 entities" in page.text("facts")
        first = page.all("#ranking .entity")[0]
        page.wait(lambda: "river in the east" in first.text)
        assert page.all("#ranking .bar")[0].get_attribute("aria-label") == "Shares of the score: Text 1.0"
        assert "Answered in" in page.text("timing")
        assert [p.text.rpartition(" ")[0].rpartition(" ")[0] for p in page.all("#timing li")] == [
            *("preparing", "waiting", "linking"),
            *("the rest of the service", "on the way"),
        ]


def test_another_example_changes_sentence_picture_and_answer(serve_page):
    with serve_page() as page:
        page.wait_for("Jordan River")
        page.all(".choice")[2].click()
        page.wait_for("Apple")
        assert page.marked() == ["Apple"]
        assert not page.shown("preview")
        assert [c.get_attribute("aria-pressed") for c in page.all(".choice")] == ["false", "false", "true"]


def test_pictures_of_entities_are_shown_where_there_are_any(serve_page):
    with serve_page() as page:
        page.type("a fruit of the east")
        page.double_click("fruit")
        page.wait_for("Red Apple")
        page.wait(lambda: page.all("#ranking .face img"))
        [image] = page.all("#ranking .face img")
        assert image.get_property("naturalWidth") == 40


def test_a_word_that_is_selected_becomes_the_mention_and_is_asked(serve_page):
    with serve_page() as page:
        page.type("Michael, an American basketball player")
        assert page.marked() == []
        page.double_click("basketball")
        page.wait_for("Michael Jordan")
        assert page.value("mention") == "basketball"
        assert page.marked() == ["basketball"]


def test_the_mark_stays_on_its_words_while_the_sentence_is_edited(serve_page):
    with serve_page() as page:
        page.wait_for("Jordan River")
        box = page.at("sentence")
        box.send_keys(Keys.CONTROL, Keys.HOME)
        box.send_keys("Near ")
        assert page.marked() == ["Jordan"]
        box.send_keys(Keys.CONTROL, Keys.END)
        box.send_keys(" again")
        assert (page.marked(), page.value("sentence")) == (
            ["Jordan"],
            "Near the river Jordan in the east again",
        )
        box.send_keys(*[Keys.BACKSPACE] * len(" in the east again"), *[Keys.BACKSPACE] * 3)
        assert page.marked() == ["Jor"]
        box.send_keys(*[Keys.BACKSPACE] * 3)
        assert (page.marked(), page.value("mention")) == ([], "")


def test_a_mention_that_is_typed_is_marked_in_the_sentence(serve_page):
    with serve_page() as page:
        page.type("the American company")
        page.at("mention").send_keys("COMPANY")
        assert page.marked() == ["company"]
        page.at("mention").send_keys(Keys.ENTER)
        page.wait_for("Apple")


def test_a_picture_that_is_dropped_goes_with_the_mention(serve_page, pictures):
    with serve_page() as page:
        page.all(".choice")[1].click()
        page.wait(lambda: not page.shown("preview"))
        page.drop(pictures / "red.png")
        page.wait(lambda: page.at("preview").get_property("naturalWidth") == 40)
        page.wait(lambda: page.asked[-1].image == (pictures / "red.png").read_bytes())
        page.at("clear").click()
        page.wait(lambda: page.asked[-1].image is None)
        assert not page.shown("preview")


def test_a_picture_that_is_chosen_or_pasted_is_taken(serve_page, pictures):
    with serve_page() as page:
        page.at("clear").click()
        page.at("file").send_keys(str(pictures / "red.png"))
        page.wait(lambda: page.shown("preview"))
        page.at("clear").click()
        page.wait(lambda: not page.shown("preview"))
        page.driver.execute_script(
            """
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([Uint8Array.from(arguments[0])], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
            """,
            list((pictures / "green.png").read_bytes()),
        )
        page.wait(lambda: page.at("preview").get_property("naturalWidth") == 40)


def test_a_picture_of_another_kind_is_refused_in_plain_words(serve_page, pictures):
    with serve_page() as page:
        page.wait_for("Jordan River")
        page.drop(pictures / "moving.gif")
        page.wait(lambda: page.shown("problem"))
        assert "This kind of picture cannot be read." in page.text("problem")
        assert "GIF" in page.text("problem")
        assert page.names() == []
        page.all(".choice")[0].click()
        page.wait_for("Jordan River")
        assert not page.shown("problem")


def test_what_is_too_long_names_field_limit_and_value(serve_page):
    with serve_page(max_text_chars=30) as page:
        page.type("the river in the east is longer than that")
        page.double_click("river")
        page.wait(lambda: page.shown("problem"))
        assert "sentence: at most 30 characters, got 41" in page.text("problem")


def test_nothing_is_asked_without_a_mention(serve_page):
    with serve_page() as page:
        page.type("the river")
        page.all("#ask button[type=submit]")[0].click()
        page.wait(lambda: "Select the words" in page.text("status"))


def test_overload_is_told_and_can_be_tried_again(serve_page, linker):
    def occupy():
        body, kind = b'{"mention": "a", "sentence": "b"}', {"content-type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{page.address}v1/link", body, kind), timeout=WAIT_S
        ) as r:
            return r.status

    with (
        serve_page(max_queue_size=1, max_batch_size=1, max_mentions=1) as page,
        ThreadPoolExecutor(2) as pool,
    ):
        page.wait_for("Jordan River")
        while linker.started.acquire(blocking=False):
            pass
        linker.gate.clear()
        held = [pool.submit(occupy)]
        assert linker.started.acquire(timeout=WAIT_S)  # one on the device
        held.append(pool.submit(occupy))
        page.wait(lambda: page.service.batcher.queue.waiting == 1)  # and one in the only place
        page.all(".choice")[2].click()
        page.wait(lambda: page.shown("problem"))
        assert "The service is busy right now." in page.text("problem")
        assert "Try again in" in page.text("problem")
        linker.gate.set()
        assert [f.result(WAIT_S) for f in held] == [200, 200]
        [again] = page.all("#problem button")
        page.wait(again.is_enabled)
        again.click()
        page.wait_for("Apple")
        assert not page.shown("problem")


def test_a_service_that_has_gone_is_told(serve_page):
    with serve_page() as page:
        page.wait_for("Jordan River")
        page.driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        try:
            page.at("mention").send_keys(Keys.ENTER)
            page.wait(lambda: page.shown("problem"))
            assert "The service cannot be reached." in page.text("problem")
        finally:
            page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
        page.all("#problem button")[0].click()
        page.wait_for("Jordan River")


def test_everything_can_be_done_with_the_keyboard_alone(serve_page):
    with serve_page() as page:
        page.wait_for("Jordan River")
        keys = lambda *pressed: ActionChains(page.driver).send_keys(*pressed).perform()  # noqa: E731
        focus = lambda: page.driver.switch_to.active_element  # noqa: E731

        def tab_to(found):
            for _ in range(60):
                keys(Keys.TAB)
                if found(focus()):
                    return
            raise AssertionError("no way to it with the tab key")

        tab_to(lambda e: e.get_attribute("id") == "sentence")
        ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
        keys("an American company")
        shift = (
            ActionChains(page.driver).key_down(Keys.SHIFT).key_down(Keys.CONTROL).send_keys(Keys.ARROW_LEFT)
        )
        shift.key_up(Keys.CONTROL).key_up(Keys.SHIFT).perform()
        page.wait_for("Apple")
        assert page.marked() == ["company"]
        tab_to(lambda e: e.get_attribute("id") == "file")
        tab_to(lambda e: "name" in (e.get_attribute("class") or "") and "Michael" in e.text)
        assert focus().get_attribute("aria-expanded") == "false"
        keys(Keys.ENTER)
        assert focus().get_attribute("aria-expanded") == "true"
        tab_to(lambda e: "choice" in (e.get_attribute("class") or ""))
        outline = focus().value_of_css_property("outline-style")
        assert outline == "solid"  # the focus can be seen
        keys(Keys.SPACE)
        page.wait_for("Jordan River")


def test_every_control_has_a_name(serve_page):
    with serve_page() as page:
        page.wait_for("Jordan River")
        for control in page.all("button, input, textarea, a"):
            if control.is_displayed() or control.get_attribute("id") == "file":
                assert control.accessible_name, control.get_attribute("outerHTML")


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_scrolls_sideways_and_text_can_be_read(serve_page, width, scheme):
    with serve_page() as page, page.seen_at(width, scheme):
        page.wait_for("Jordan River")
        needed, _ = page.width_of("html")
        assert needed <= width
        for element_id in ("title", "status", "sentence", "answer-title"):
            assert contrast(page, element_id) >= 4.5, element_id


@pytest.mark.parametrize("width", [320, 1280])
def test_no_font_and_no_word_is_too_wide(serve_page, linker, width):
    long = "Donaudampfschifffahrtsgesellschaftskapitaen"
    known = [*linker.index.entities, Entity("Q10", long, 2 * long, (), long)]
    linker.index = type(linker.index)(known)
    with serve_page() as page, page.seen_at(width):
        # a font whose letters are half as wide again
        page.driver.execute_script(
            "document.styleSheets[0].insertRule('* { letter-spacing: .3em !important }')"
        )
        page.type(f"the {long}")
        page.double_click(long)
        page.wait_for(long)
        page.wait(lambda: long in page.all("#ranking .about")[0].text)
        needed, _ = page.width_of("html")
        assert needed <= width


def contrast(page, element_id):
    """Contrast of an element's text with what lies under it (WCAG 2)."""
    text, ground = page.driver.execute_script(
        """
        const element = document.getElementById(arguments[0]);
        const under = (e) => {
          const colour = getComputedStyle(e).backgroundColor;
          return colour === "rgba(0, 0, 0, 0)" && e.parentElement ? under(e.parentElement) : colour;
        };
        return [getComputedStyle(element).color, under(element)];
        """,
        element_id,
    )
    light, dark = sorted((luminance(text), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    values = [int(v) / 255 for v in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
