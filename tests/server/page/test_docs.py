"""The page of the documentation in a browser: every route is shown, from this machine alone."""

import pytest

pytestmark = pytest.mark.slow


def test_every_route_is_shown(serve_page):
    with serve_page() as page:
        page.driver.get(page.address + "docs")
        shown = page.wait(lambda: page.driver.find_elements("css selector", ".opblock-summary-path"))
        paths = {element.get_attribute("data-path") for element in shown}
        assert {"/v1/link", "/v1/entities/{entity_id}", "/health/ready", "/metrics"} <= paths
        assert len(shown) == 21
        assert not page.driver.find_elements("css selector", ".errors-wrapper")
