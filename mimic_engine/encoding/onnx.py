"""The ONNX Runtime session: encoders and folds of an exported model on the CPU. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from mimic_engine.encoding.graph import OnnxGraph, available_threads
from mimic_engine.encoding.manifest import CPU_PRECISIONS, QUANTISED, ModelManifest
from mimic_engine.encoding.session import ENCODERS, FOLDS, GraphSession
from mimic_engine.errors import InvalidInputError


class OnnxSession(GraphSession):
    """Encoders and folds of an exported model on ONNX Runtime's CPU provider.

    Examples
    --------
    >>> session = OnnxSession.open("model/", precision="fp32", threads=2)  # doctest: +SKIP
    >>> session.encode_text(tokens).cls.shape  # doctest: +SKIP
    (3, 384)
    """

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        verify: bool = True,
    ) -> Self:
        """Open an exported model folder.

        Parameters
        ----------
        folder : written by ``export/to_onnx.py``.
        precision : "fp32", "fp16", "int8" or "fp8", of the encoders; the folds follow where they
            were exported in it, and are fp32 with quantised encoders.
        threads : cores that one call may use; all that the process may use by default.
        verify : check the SHA-256 of every file that is opened; otherwise only its size.

        Raises
        ------
        InvalidInputError
            If no CPU runs the precision.
        ModelError
            If a file is missing or damaged, the version is another, or the precision is not there.
        """
        folder = Path(folder)
        manifest = ModelManifest.read(folder)
        if precision == "bf16":
            raise InvalidInputError(
                f"precision: 'bf16' needs a GPU; on the CPU there is {', '.join(CPU_PRECISIONS)}",
                field="precision",
            )
        cores = available_threads() if threads is None else threads

        def graphs() -> dict[str, OnnxGraph]:
            return {
                name: OnnxGraph.open(folder, manifest, name, chosen, threads=cores, verify=verify)
                for name, chosen in precisions(precision).items()
            }

        tokenizer = manifest.tokenizer.check(folder, verify=verify)
        return cls(manifest, graphs(), tokenizer, "onnx", reopen=graphs)


def precisions(precision: str) -> dict[str, str]:
    """Precision of each graph: int8 and fp8 are for encoders, their folds stay fp32."""
    folds = "fp32" if precision in QUANTISED else precision
    return dict.fromkeys(ENCODERS, precision) | dict.fromkeys(FOLDS, folds)
