"""The ONNX Runtime session: encoders and folds of an exported model on the CPU, and one graph of any.

What an :class:`OnnxGraph` computes is the manifest's matter: it is checked, opened and run here. The
options of a session serve the CUDA provider too (:mod:`mimic_engine.gpu.onnx_cuda`). No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import onnxruntime

from mimic_engine.encoding.graph_names import ENCODERS, FOLDS
from mimic_engine.encoding.manifest import CPU_PRECISIONS, QUANTISED, GraphEntry, ModelManifest
from mimic_engine.encoding.session import Arrays, GraphSession, RunnableGraph
from mimic_engine.errors import BackendError, InvalidInputError, ModelError
from mimic_engine.types import Array

CPU = "CPUExecutionProvider"
ERRORS_ONLY = 3  # ONNX Runtime's log severity
# Rewrites that are left out: this one refuses to load a graph that clips and then quantises to 8-bit floats.
LEFT_OUT = ("ClipQuantRewrite",)


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


class OnnxGraph(RunnableGraph):
    """A graph that is ready to run; safe to call from several threads.

    Parameters
    ----------
    path : of the ``.onnx`` file, already checked.
    entry : names and shapes of its inputs and outputs.
    threads : cores that one run may use.
    """

    def __init__(self, path: Path, entry: GraphEntry, threads: int) -> None:
        super().__init__(path.name, entry)
        self._session = open_session(path, cpu_options(threads), [(CPU, {})])
        check_names(path, self._session, entry)

    @classmethod
    def open(
        cls, folder: Path, manifest: ModelManifest, name: str, precision: str, *, threads: int, verify: bool
    ) -> Self:
        """Open a graph of a model folder.

        Raises
        ------
        ModelError
            If it is missing, damaged, or was not exported in that precision.
        """
        entry = manifest.entry(name, precision)
        if entry.data is not None:
            entry.data.check(folder, verify=verify)
        return cls(entry.onnx.check(folder, verify=verify), entry, threads)

    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Run on checked inputs."""
        return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))


def check_names(path: Path, session: onnxruntime.InferenceSession, entry: GraphEntry) -> None:
    """Raise ModelError if the graph's inputs and outputs are not those of the manifest."""
    inputs = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    if inputs != list(entry.inputs) or outputs != list(entry.outputs):
        raise ModelError(
            f"{path}: takes {inputs} and gives {outputs}, "
            f"the manifest says {list(entry.inputs)} and {list(entry.outputs)}"
        )


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_options(threads: int) -> onnxruntime.SessionOptions:
    """Session options for the CPU.

    Raises
    ------
    InvalidInputError
        If ``threads`` is below 1.
    """
    if threads < 1:
        raise InvalidInputError(f"threads: {threads} is below 1", field="threads")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Its threads would spin after a call and take the cores from the scan: twice the time of a whole request.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    path: Path, options: onnxruntime.SessionOptions, providers: Sequence[tuple[str, Mapping[str, str]]]
) -> onnxruntime.InferenceSession:
    """Open a graph with these providers, the first one preferred.

    Raises
    ------
    ModelError
        If the graph cannot be loaded.
    BackendError
        If a provider that was asked for did not come up: ONNX Runtime falls back with a log line only.
    """
    wanted = [name for name, _ in providers]
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=list(providers), disabled_optimizers=LEFT_OUT
        )
    except Exception as error:
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    there = session.get_providers()
    missing = [name for name in wanted if name not in there]
    if missing:
        raise BackendError(f"{path}: ONNX Runtime runs it on {there}, without {missing}, asked for {wanted}")
    return session
