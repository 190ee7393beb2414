"""The rest of a path as one parameter, whatever it holds: ids may have slashes and line breaks in them."""

from __future__ import annotations

from starlette.convertors import PathConvertor, register_url_convertor

REST = "rest"  # "/v1/entities/{entity_id:rest}"


class _Rest(PathConvertor):
    """Starlette's ``path`` stops at a line break."""

    regex = "(?s:.*)"


register_url_convertor(REST, _Rest())
