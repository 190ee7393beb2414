"""Import path of the top-level ``export/`` folder: ``mimic_engine.export.<module>``.

See :mod:`mimic_engine.kernels` for why the folder itself is not a package.
"""

from pathlib import Path

_repository = Path(__file__).resolve().parents[2]
# In site-packages a sibling folder "export" would be someone else's: only a source tree has pyproject.toml.
if (_repository / "pyproject.toml").is_file():
    __path__.append(str(_repository / "export"))
