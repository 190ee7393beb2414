"""Import path of the top-level ``kernels/`` folder: ``mimic_engine.kernels.<module>``.

The folder carries no ``__init__.py`` of its own: a regular top-level package
called ``kernels`` would shadow Hugging Face's package of that name and break
``import transformers``. In a wheel the modules lie beside this file; in a
source tree (and so in an editable install) they are found in the repository's
folder.
"""

from pathlib import Path

_repository = Path(__file__).resolve().parents[2]
# In site-packages a sibling folder "kernels" would be someone else's: only a source tree has pyproject.toml.
if (_repository / "pyproject.toml").is_file():
    __path__.append(str(_repository / "kernels"))
