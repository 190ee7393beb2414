"""GPU kernels on the CPU: these tests need Triton's interpreter, which must be chosen before Triton is imported.

``tests/kernels/test_interpreted.py`` runs them in a process of their own.
"""

import os

from tests.kernels.interpreted.fixtures import make_folded, sorted_topk

__all__ = ["make_folded", "sorted_topk"]
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
