"""What the page shows only where the service offers it: attended words, the nil verdict, changes of entities."""

from dataclasses import replace

import pytest
from selenium.webdriver.common.keys import Keys

from mimic_engine import Linker
from mimic_engine.calibration.stored import Calibration
from mimic_engine.calibration.weights import Probability, ScoreWeights
from mimic_engine.index.store import Index
from mimic_engine.server.app import create_app
from mimic_engine.server.settings import Settings
from mimic_engine.types import Mention
from mimic_engine.wire import LinkBody

pytestmark = pytest.mark.slow
KEY = "a-key-for-the-admin"


@pytest.fixture
def tiny_page(open_page, tiny_model, tiny_index):
    """The page of a real linker, with one example."""
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    with open_page(create_app(linker, Settings(), examples=[Mention("a", "c d a b.")])) as page:
        page.wait(page.names)
        yield page
    linker.close()


def offers(option):
    return pytest.mark.skipif(option not in LinkBody.__struct_fields__, reason=f"the service has no {option}")


def test_bars_of_scores_below_zero_stay_within_their_frame(tiny_page):
    bars = tiny_page.driver.execute_script(
        "return [...document.querySelectorAll('.bar')].map(bar => [...bar.children].map("
        "part => [parseFloat(part.style.left), parseFloat(part.style.width)]))"
    )
    labels = [bar.get_attribute("aria-label") for bar in tiny_page.all(".bar")]
    assert any("-" in label.partition(":")[2] for label in labels)
    for parts in bars:
        assert len(parts) == 3
        assert all(left >= -0.01 and left + width <= 100.01 for left, width in parts)


@offers("explain")
def test_the_words_that_were_attended_to_are_shaded(tiny_page):
    words = tiny_page.all(".open .read span[title]")
    assert [w.text for w in words] == ["a", "c", "d", "a", "b", "."]
    shades = [w.value_of_css_property("background-color") for w in words]
    assert len(set(shades)) > 2
    assert all(w.get_attribute("title").endswith("% of the attention") for w in words)


@offers("nil_threshold")
def test_none_of_these_is_said_below_the_threshold(tiny_page):
    assert not tiny_page.shown("nil")
    tiny_page.at("threshold").send_keys("1e6", Keys.ENTER)
    tiny_page.wait(lambda: tiny_page.shown("nil"))
    assert tiny_page.text("nil").startswith("None of these. The best score, ")
    assert tiny_page.names()  # what came closest is still there to be seen
    tiny_page.at("threshold").clear()
    tiny_page.at("threshold").send_keys(Keys.ENTER)
    tiny_page.wait(lambda: not tiny_page.shown("nil"))


@pytest.fixture
def named_page(open_page, tiny_model, tiny_index, tmp_path):
    """The page of a real linker that counts names, with one example."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    model_hash = Index.open(tiny_index).manifest.model_hash
    weights = ScoreWeights(exact=9.0, words=7.0)
    Calibration(model_hash, weights, Probability(3.0, -5.0)).write(folder)
    linker = Linker.open(folder, tiny_index, threads=1)
    with open_page(create_app(linker, Settings(), examples=[Mention("g g", "c d g g b.")])) as page:
        page.wait(page.names)
        yield page
    linker.close()


def test_names_are_in_the_bar_and_can_be_left_out(named_page):
    bar = named_page.all("#ranking .bar")[0].get_attribute("aria-label")
    assert ", Name " in bar
    first = named_page.all("#ranking .entity")[0].text
    assert "The score is the mean of the others plus name." in first
    assert "Probability: " in first
    assert "Name that matched: “g g”" in first
    named_page.at("names").click()
    named_page.wait(
        lambda: (
            named_page.names()
            and ", Name " not in named_page.all("#ranking .bar")[0].get_attribute("aria-label")
        )
    )
    assert "The score is their mean." in named_page.all("#ranking .entity")[0].text


def test_a_model_that_weighs_no_names_offers_none(tiny_page):
    assert not tiny_page.shown("names-field")


def test_nothing_is_offered_that_the_service_has_not(serve_page):
    with serve_page() as page:
        page.wait_for("Jordan River")
        info = page.driver.execute_async_script(
            "const done = arguments[0]; fetch('v1/info').then(r => r.json()).then(done)"
        )
        assert info["changes"] is False  # it was started without a writer
        assert not page.shown("add")
        assert not page.all(".actions")
        assert page.shown("threshold-field") == ("nil_threshold" in LinkBody.__struct_fields__)


@pytest.fixture
def editable(open_page, linker, writer, pictures, tmp_path):
    """A page whose service takes changes: PUT and DELETE of an entity, for who has the admin key."""
    jordan, *others, apple = linker.index.entities
    apple = replace(apple, images=(str(pictures / "red.png"),))
    linker.index = type(linker.index)([jordan, *others, apple])
    linker.stored[0] = linker.index.entities
    (tmp_path / "key").write_text(KEY)
    settings = Settings(admin_key_file=str(tmp_path / "key"))
    examples = [Mention("Apple", "the fruit called Apple")]
    app = create_app(linker, settings, examples=examples, writer=writer)
    with open_page(app) as page:
        page.wait_for("Apple")
        yield page


def fill(page, **fields):
    for name, text in fields.items():
        page.at(name.replace("_", "-")).clear()
        page.at(name.replace("_", "-")).send_keys(text)
    page.at("save").click()


def closed(page):
    return not page.shown("editor")


def test_an_entity_is_added_and_linked_at_once(editable):
    editable.at("add").click()
    fill(
        editable,
        entity_id="Q1/2",
        entity_name="Apple",
        entity_type="fruit",
        entity_description="the fruit",
        key=KEY,
    )
    editable.wait(lambda: closed(editable))
    editable.wait(lambda: editable.all("#ranking .entity:first-child[data-id='Q1/2']"))
    assert "5 entities" in editable.text("facts")


def test_the_dialog_is_no_wider_than_a_small_screen(editable):
    with editable.seen_at(320):
        editable.wait_for("Apple")
        editable.at("add").click()
        editable.wait(lambda: editable.shown("editor"))
        for selector in ("html", "#editor"):
            needed, has = editable.width_of(selector)
            assert needed <= has, selector


def test_an_entity_is_edited_and_removed(editable):
    editable.wait(lambda: editable.all(".open .actions"))
    editable.all(".open .actions button")[0].click()
    assert editable.value("entity-id") == "Q312"
    assert editable.value("entity-description") == "American company"
    fill(editable, entity_name="Apple Inc", key=KEY)
    editable.wait(lambda: closed(editable))
    editable.wait(lambda: "Apple Inc" in editable.names())
    opened = editable.all("[data-id=Q312] .name")[0]
    if opened.get_attribute("aria-expanded") == "false":
        opened.click()
    editable.wait(lambda: editable.all("[data-id=Q312] .actions button"))
    editable.all("[data-id=Q312] .actions button")[1].click()
    assert editable.text("editor-title") == "Remove Apple Inc"
    editable.at("save").click()
    editable.wait(lambda: closed(editable))
    editable.wait(lambda: editable.names() and "Apple Inc" not in editable.names())


def test_a_picture_is_kept_where_it_can_be_read_back_and_asked_for_where_not(editable, pictures):
    def edit(id_):
        name = editable.all(f"[data-id={id_}] .name")[0]
        if name.get_attribute("aria-expanded") == "false":
            name.click()
        editable.wait(lambda: editable.all(f"[data-id={id_}] .actions button"))
        editable.all(f"[data-id={id_}] .actions button")[0].click()
        fill(editable, entity_type="edited", key=KEY)

    def images(id_):
        index = editable.service.linker.index
        return index.entity(index.rows([id_])[0]).images

    red = (pictures / "red.png").read_bytes()
    edit("Q312")
    editable.wait(lambda: closed(editable))
    assert images("Q312") == (red,)
    editable.wait_for("Apple")
    edit("Q810")  # its pictures are no pictures
    editable.wait(lambda: editable.shown("entity-problem"))
    assert "cannot read it back" in editable.text("entity-problem")
    editable.at("entity-picture").send_keys(str(pictures / "red.png"))
    editable.at("save").click()
    editable.wait(lambda: closed(editable))
    assert images("Q810") == (red,)
    index = editable.service.linker.index
    kept = index.entity(index.rows(["Q810"])[0])
    assert (kept.aliases, kept.popularity) == (("Urdunn", "HKJ"), 7.5)


def test_a_change_that_is_refused_is_told_in_the_dialog_and_nothing_is_lost(editable):
    editable.at("add").click()
    fill(editable, entity_id="Q1", entity_name="Apple", key="wrong")
    editable.wait(lambda: editable.shown("entity-problem"))
    assert "key" in editable.text("entity-problem")
    assert editable.value("entity-name") == "Apple"
    editable.at("cancel").click()
    assert closed(editable)
    assert "4 entities" in editable.text("facts")
