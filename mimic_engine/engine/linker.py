"""The engine: mentions in, ranked entities out. Read this first.

    preprocess -> encode -> fold -> scan -> re-score the winners -> top-k
       names -> name scores -----^

:class:`Linker` puts the parts together and knows nothing of HTTP. The parts:
:mod:`mimic_engine.encoding` (graphs and preprocessing), :mod:`mimic_engine.index`
(folded entities on disk), :mod:`mimic_engine.names` (what a mention shares with
entities' names), :mod:`mimic_engine.scan` (the scan).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.backends.encoders import GPU_BACKENDS, open_featurizer
from mimic_engine.backends.scan import ScanOptions, open_scan
from mimic_engine.base.model import find_model
from mimic_engine.calibration.candidates import ranked_mentions
from mimic_engine.calibration.recall import promised
from mimic_engine.calibration.stored import Calibration
from mimic_engine.calibration.weights import RANKED, Probability, RankedMention, ScoreWeights
from mimic_engine.encoding.cache import CachingFeaturizer, EncodingCache
from mimic_engine.encoding.featurizer import Featurizer, PreparedMention
from mimic_engine.engine.explain import explain_result
from mimic_engine.engine.warmup import WarmUp, first_and_steady
from mimic_engine.engine.weighed_names import WeighedNames, score_terms
from mimic_engine.errors import InvalidInputError, UnknownEntityError
from mimic_engine.images import ImageLimits
from mimic_engine.index.store import Index
from mimic_engine.names.prior import prior_of
from mimic_engine.scan.ranker import Ranker
from mimic_engine.scan.scan import DEFAULT_RERANK, TopK
from mimic_engine.scan.terms import NO_NAMES, NameScores
from mimic_engine.types import (
    DEFAULT_OPTIONS,
    Candidate,
    DeviceLayer,
    LinkOptions,
    LinkResult,
    Mention,
    MentionArrays,
    Mode,
    PlacementChoice,
    ScorerChoice,
)

KEPT_MASKS = 16  # of types that were asked for together
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Search:
    """Options held against one index: what the scan needs to know. Equal ones are searched together.

    Attributes
    ----------
    mode, rerank : as of :meth:`mimic_engine.scan.scan.Scan.search`.
    names : whether names and prior count.
    among : identity of the candidates; None for all entities.
    count : candidates.
    rows : their rows, where ids were given.
    allowed : (N,), the rows that may be answered; None for all.
    """

    mode: Mode
    rerank: int
    names: bool
    among: Hashable
    count: int = field(compare=False)
    rows: NDArray[np.int64] | None = field(compare=False)
    allowed: NDArray[np.bool_] | None = field(compare=False)


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One mention ready for the device, with options that its linker has checked.

    ``names`` are its name scores, None where names do not count; ``explained`` is the mention itself, where
    its answer is to be explained.
    """

    mention: PreparedMention
    options: LinkOptions
    search: Search
    names: NameScores | None = None
    explained: Mention | None = None


class Linker:
    """Links mentions to the entities of one index with one model.

    Safe to use from one thread at a time (the service gives it a thread of its
    own); :meth:`prepare` may be called from any thread.

    Examples
    --------
    >>> linker = Linker.open("model/", "index/")  # doctest: +SKIP
    >>> [result] = linker.link([Mention("Jordan", "Jordan lies east of Israel.")])  # doctest: +SKIP
    >>> result.candidates[0].name  # doctest: +SKIP
    'Jordan'
    """

    def __init__(
        self,
        featurizer: Featurizer,
        index: Index,
        scan: Ranker,
        calibration: Calibration | None = None,
        *,
        names: bool = True,
        verify: bool = True,
    ) -> None:
        self.featurizer = featurizer
        self.index = index
        self.calibration = Calibration(featurizer.model_hash) if calibration is None else calibration
        self._weights = self.calibration.weights if names else ScoreWeights()
        self._scan = scan
        self._verify = verify
        promise = promised(index.manifest)
        self.warmed: WarmUp | None = None
        self._rerank = DEFAULT_RERANK if promise is None else max(DEFAULT_RERANK, promise.r_999)
        self._of_types = lru_cache(KEPT_MASKS)(self._mask)
        if self._weights:
            _ = index.name_lookup  # made now, not by the first mention

    @classmethod
    def open(
        cls,
        model: str | Path,
        index: str | Path,
        *,
        backend: str = "auto",
        precision: str = "fp32",
        threads: int | None = None,
        scorer: ScorerChoice = "auto",
        placement: PlacementChoice = "auto",
        verify: bool = True,
        image_limits: ImageLimits | None = None,
        engines: str | Path | None = None,
        checkpoint: str | Path | None = None,
        device_layer: DeviceLayer = "auto",
        cache_bytes: int = 0,
        names: bool = True,
    ) -> Self:
        """Open an exported model and an index built with it.

        Parameters
        ----------
        model : folder that ``export/to_onnx.py`` wrote, or "base": the model that is shipped, made ready at
            its first use (:func:`mimic_engine.base.base_model`, whose errors are raised too).
        index : folder that ``mimic-engine index build`` wrote.
        backend : what runs the encoders: "onnx" (ONNX Runtime on the CPU), "cuda" (ONNX Runtime),
            "tensorrt", "torch", or "auto": the fastest that gives the CPU's answers on this machine.
        precision : of the encoder graphs: "fp32", "fp16", "int8", "fp8", and "bf16" on a GPU.
        threads : CPU cores for encoders and scan; all that the process may use by default.
        scorer : "cuda" (the scan on a GPU), "cpu" (compiled kernels), "onnx" (the exported graph), or "auto":
            the GPU where the encoders run on one and the index fits, else the fastest that is installed.
        placement : where the scan on a GPU keeps the token queries, four fifths of an index: "device",
            "host" (pinned memory), or "auto", the device if they fit.
        verify : check the SHA-256 of every file before it is trusted.
        image_limits : byte, pixel and format limits of mention images.
        engines : folder of TensorRT engines; ``engines`` in ``model`` by default.
        checkpoint : folder that ``model`` was exported from, which the torch backend reads.
        device_layer : what encoders on a GPU have memory from: "pycuda", "cuda-core", or "auto", PyCUDA
            where it is installed.
        cache_bytes : memory for mentions and images that come again; 0 remembers none.
        names : count names and prior as the model was calibrated; else the model's score alone.

        Raises
        ------
        ModelError
            If the model folder is missing, damaged or lacks the precision.
        BackendError, MissingDependencyError
            If the backend or the device layer that was asked for does not work here.
        IndexFormatError, IndexMismatchError
            If the index is missing, damaged, empty, or was built with another model.
        MissingDependencyError
            If the scorer was asked for by name, and it or a device that it needs is not there.
        EngineError
            If the scorer is "cuda" and the index does not fit in the device's memory.
        """
        opened = Index.open(index, verify=verify)
        model = find_model(model)
        featurizer = open_featurizer(
            model,
            backend=backend,
            precision=precision,
            threads=threads,
            verify=verify,
            image_limits=image_limits,
            engines=engines,
            checkpoint=checkpoint,
            device_layer=device_layer,
            cache_bytes=cache_bytes,
        )
        opened.check_model(featurizer.model_hash)
        calibration = Calibration.read(model, featurizer.model_hash)
        weights = calibration.weights if names else ScoreWeights()
        options = ScanOptions(scorer, threads, placement, featurizer.backend in GPU_BACKENDS, verify)
        scan = open_scan(
            opened.segments,
            featurizer.constants,
            model,
            options,
            tie_key=opened.ids,
            codes=opened.codes,
            terms=score_terms(weights, opened.popularity, opened.alive),
        )
        return cls(featurizer, opened, scan, calibration, names=names, verify=verify)

    def reopened(self) -> Self:
        """A linker over the newest state of the same index folder, or itself if that has not changed.

        The old one goes on working, on the entities it was opened with.

        Raises
        ------
        IndexFormatError, IndexMismatchError
            If the index is damaged by now, or was rebuilt with another model.
        """
        newest = Index.open(self.index.path, verify=self._verify)
        if newest.manifest == self.index.manifest:
            return self
        newest.check_model(self.model_hash)
        terms = score_terms(self._weights, newest.popularity, newest.alive)
        return self._over(newest, self._scan.over(newest.segments, newest.ids, newest.codes, terms))

    def _over(self, index: Index, scan: Ranker) -> Self:
        """The same over another state of the index."""
        linker = type(self)(self.featurizer, index, scan, self.calibration, **self._options())
        linker.warmed = self.warmed
        return linker

    def _options(self) -> dict[str, bool]:
        """Options that a linker over other parts has too."""
        return {"names": self._weights == self.calibration.weights, "verify": self._verify}

    @property
    def counts_names(self) -> bool:
        """Whether names and prior count, unless a mention's options say otherwise."""
        return bool(self._weights)

    def nil_threshold(self, names: bool = True) -> float | None:
        """Total below which a mention's best candidate is no answer; None where none was calibrated.

        ``names`` says whether they count, where the linker counts them: a threshold is for one of the two.
        """
        nil = self.calibration.nil
        return nil.threshold if nil is not None and self._is_calibrated(names and self.counts_names) else None

    def _is_calibrated(self, names: bool) -> bool:
        """Whether totals with, or without, names are what was calibrated."""
        return names == bool(self.calibration.weights)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the index can be searched in."""
        return self._scan.modes

    @property
    def model_hash(self) -> str:
        """Identity of the model; the index carries the same."""
        return self.featurizer.model_hash

    def link(
        self,
        mentions: Sequence[Mention],
        top_k: int = 10,
        *,
        candidates: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        mode: Mode = "certified",
        rerank: int | None = None,
        explain: bool = False,
        names: bool = True,
    ) -> list[LinkResult]:
        """Rank entities for each mention.

        Parameters
        ----------
        mentions : B mentions; text over the model's length is cut, and the result says so.
        top_k : how many entities to return for each.
        candidates : entity ids to choose among; all entities by default.
        types : entity types to choose among; all by default.
        mode : "certified" and "exact" give the same answer, the first for less work; "coded"
            needs an index with codes and gives what the index's calibration says.
        rerank : entities that mode "coded" scores exactly; by default 128, or what the index's
            calibration asks for if that is more.
        explain : say for every candidate which tokens TGLU attended to, what each unit gave, and which
            of its names matched.
        names : count names and prior, where the model weighs them; else the model's score alone.

        Raises
        ------
        InvalidInputError
            If ``top_k`` is not between 1 and the number of candidates, no entity has one of the types,
            the mode cannot be answered in, or an image is unusable.
        UnknownEntityError
            If a candidate id is not in the index.
        """
        if not mentions:
            return []
        among, kinds = (None if given is None else tuple(given) for given in (candidates, types))
        options = LinkOptions(top_k, among, kinds, mode, rerank, explain, names)
        search = self._resolve(options)
        if top_k > search.count:
            raise _outside(top_k, search.count)
        return self.link_prepared([self._prepare(m, options, search) for m in mentions])

    def prepare(self, mention: Mention, options: LinkOptions = DEFAULT_OPTIONS) -> PreparedRequest:
        """Tokenise and decode one mention, and resolve its options: all that needs no device.

        Errors as in :meth:`link`, but for a ``top_k`` above the number of candidates: it is lowered to that.
        """
        search = self._resolve(options)
        return self._prepare(mention, replace(options, top_k=min(options.top_k, search.count)), search)

    def link_prepared(self, requests: Sequence[PreparedRequest]) -> list[LinkResult]:
        """Encode B prepared requests together and rank entities for each; equal searches are one."""
        if not requests:
            return []
        arrays = self.featurizer.fold_prepared([request.mention for request in requests])
        groups: dict[Search, list[int]] = {}
        for b, request in enumerate(requests):
            groups.setdefault(request.search, []).append(b)
        results: dict[int, LinkResult] = {}
        for search, members in groups.items():
            own = arrays if len(groups) == 1 else arrays.take(members)
            top = self._scan.search(
                own,
                max(self._ranked(requests[b]) for b in members),
                mode=search.mode,
                rows=search.rows,
                allowed=search.allowed,
                rerank=search.rerank,
                names=[requests[b].names or NO_NAMES for b in members] if search.names else None,
            )
            for i, b in enumerate(members):
                result = self._result(requests[b], top, i)
                if requests[b].options.explain:
                    rows = top.rows[i, : len(result.candidates)]
                    result = self._explained(requests[b], result, rows, own.block(i, i + 1))
                results[b] = result
        return [results[b] for b in range(len(requests))]

    def start_prepared(
        self, requests: Sequence[PreparedRequest]
    ) -> list[LinkResult] | Callable[[], list[LinkResult]]:
        """Do what :meth:`link_prepared` does, or start it where the device works on by itself.

        The call that is given then waits for the results; two batches may be under way.
        """
        return self.link_prepared(requests)

    @property
    def cache(self) -> EncodingCache | None:
        """The memory of mentions and images that were encoded before, if there is one."""
        return self.featurizer.cache if isinstance(self.featurizer, CachingFeaturizer) else None

    def ranks(
        self, mentions: Sequence[Mention], gold: NDArray[np.int64], *, names: bool = True
    ) -> NDArray[np.int64]:
        """1-based rank of index row ``gold[b]`` for each mention, ties counted against it; (B,)."""
        arrays = self.featurizer.mentions(mentions)
        scores = [self._names.scores(m) for m in mentions] if names and self.counts_names else None
        return self._scan.ranks(arrays, gold, allowed=self.index.alive, names=scores)

    def ranked_mentions(self, mentions: Sequence[Mention], gold: Sequence[int | None]) -> list[RankedMention]:
        """The candidates of B mentions with the numbers that a calibration weighs.

        ``gold`` are index rows, None where no entity is right. Errors as of :meth:`link`.
        """
        index = self.index
        return ranked_mentions(
            self._scan,
            index.name_lookup,
            prior_of(index.popularity, index.alive),
            mentions,
            self.featurizer.mentions(mentions),
            gold,
            allowed=index.alive,
        )

    def warm_up(self) -> None:
        """Run everything in every shape that a request can have, so that the first costs what the next does.

        ``warmed`` says, and the log, what the first request after it took against those that followed.
        """
        start = time.perf_counter()
        size = self.featurizer.image_size
        text = self.featurizer.prepare(Mention("warm-up", "One mention, so that every graph has run."))
        mention = PreparedMention(text.tokens, np.zeros((3, size, size), np.float32))
        one = LinkOptions(1)
        request = PreparedRequest(mention, one, self._resolve(one))
        encoder_runs = self.featurizer.warm_up()
        searches = self._scan.warm_up(self.featurizer.fold_prepared([mention]), self.index.alive)
        seconds = time.perf_counter() - start
        first, steady = first_and_steady(lambda: self.link_prepared([request]))
        self.warmed = WarmUp(seconds, encoder_runs, searches, first, steady)
        logger.info("%s", self.warmed)

    def warm_in_steps(self) -> Iterator[None] | None:
        """Warm-up over a newer state of the index, a bit every time it is advanced; None if it needs none."""
        return None

    def recover(self) -> None:
        """Take the device up anew after a DeviceError, and warm up; on the thread that links.

        Linkers of the same model share the encoders, and have them back as well.

        Raises
        ------
        MimicError
            If that fails; mentions then fail too, until a later recovery succeeds.
        """
        self.featurizer.rebuild()
        self._scan.rebuild()
        self.warm_up()

    def info(self) -> dict[str, Any]:
        """Description of what is loaded, for people and for ``/v1/info``; JSON types only."""
        nil = self.calibration.nil
        return {
            "model_hash": self.model_hash,
            "units": list(self.featurizer.constants.units),
            "max_text_tokens": self.featurizer.max_text_tokens,
            "image_size": self.featurizer.image_size,
            "entities": len(self.index),
            "index_dtype": self.index.manifest.dtype,
            "modes": list(self.modes),
            "agreement": dict(self.index.manifest.agreement),
            "backend": self.featurizer.backend,
            "scorer": self._scan.scorer_name,
            "threads": self._scan.threads,
            "warm_up": None if self.warmed is None else self.warmed.to_json(),
            "names": {"counted": self.counts_names, "weights": asdict(self._weights)},
            "nil_threshold": None if nil is None or self.nil_threshold() is None else asdict(nil),
        }

    def close(self) -> None:
        """Stop the scan's threads."""
        self._scan.close()

    def _resolve(self, options: LinkOptions) -> Search:
        """Hold options against the index; errors as in :meth:`link`, but for a ``top_k`` above the count."""
        if options.mode not in self._scan.modes:
            modes = ", ".join(self._scan.modes)
            raise InvalidInputError(
                f"mode: {options.mode!r} is not one of {modes}, which this index can answer in", field="mode"
            )
        if options.rerank is not None and options.rerank < 1:
            raise InvalidInputError(f"rerank: must be at least 1, got {options.rerank}", field="rerank")
        search = self._among(options, options.rerank or self._rerank)
        if options.top_k < 1 or not search.count:
            raise _outside(options.top_k, search.count)
        return search

    def _among(self, options: LinkOptions, rerank: int) -> Search:
        """Candidates given by id are few and all scored; those of a type may be most of the index."""
        mode, alive, names = options.mode, self.index.alive, options.names and self.counts_names
        if options.candidates is not None:
            rows = self._select(options.candidates, options.types)
            return Search(mode, rerank, names, rows.tobytes(), len(rows), rows, alive)
        if options.types is not None:
            allowed, count = self._of_types(options.types)
            return Search(mode, rerank, names, options.types, count, None, allowed)
        return Search(mode, rerank, names, None, len(self.index), None, alive)

    def _select(self, ids: Sequence[str] | None, types: Sequence[str] | None) -> NDArray[np.int64]:
        try:
            rows = self.index.select(ids, types)
        except UnknownEntityError as error:
            error.field = "candidates"
            raise
        assert rows is not None  # something was asked for
        return rows

    def _mask(self, types: tuple[str, ...]) -> tuple[NDArray[np.bool_], int]:
        """Rows that have one of the types, (N,), and how many they are."""
        rows = self._select(None, types)
        allowed = np.zeros(len(self._scan), np.bool_)  # (N,)
        allowed[rows] = True
        return allowed, len(rows)

    def _prepare(self, mention: Mention, options: LinkOptions, search: Search) -> PreparedRequest:
        return PreparedRequest(
            self.featurizer.prepare(mention, spans=options.explain),
            options,
            search,
            self._names.scores(mention) if search.names else None,
            mention if options.explain else None,
        )

    @property
    def _names(self) -> WeighedNames:
        return WeighedNames(self.index.name_lookup, self._weights)

    def _ranked(self, request: PreparedRequest) -> int:
        """Entities to rank for a request: what it asks for, or more for a probability to be shared among."""
        if self._probability(request) is None:
            return request.options.top_k
        return min(request.search.count, max(request.options.top_k, RANKED))

    def _probability(self, request: PreparedRequest) -> Probability | None:
        return self.calibration.probability if self._is_calibrated(request.search.names) else None

    def _result(self, request: PreparedRequest, top: TopK, b: int) -> LinkResult:
        """Result of a request that is row ``b`` of a search."""
        rows = top.rows[b, : request.options.top_k]
        units = [{name: float(s[b, i]) for name, s in top.units.items()} for i in range(len(rows))]
        ids, names = self.index.ids(rows), self.index.names(rows)
        shares: Sequence[float | None] = [None] * len(rows)
        nil = None
        if (probability := self._probability(request)) is not None:
            found, nil = probability.of(top.scores[b, : self._ranked(request)].astype(np.float64))
            shares = found.tolist()
        candidates = tuple(
            Candidate(ids[i], names[i], float(top.scores[b, i]), units[i], probability=shares[i])
            for i in range(len(rows))
        )
        return LinkResult(
            candidates,
            bool(request.mention.tokens.truncated[0]),
            request.mention.has_image,
            top.modes[b],
            int(top.scored[b]),
            nil_probability=nil,
        )

    def _explained(
        self, request: PreparedRequest, result: LinkResult, rows: NDArray[np.int64], own: MentionArrays
    ) -> LinkResult:
        """A result with its explanations; ``rows`` are its candidates', ``own`` is its mention, folded."""
        matched: list[str | None] = [None] * len(rows)
        if request.search.names and request.explained is not None:
            entities = [self.index.entity(row) for row in rows.tolist()]
            matched = [self._names.matched(request.explained, (e.name, *e.aliases)) for e in entities]
        queries = self._scan.token_queries(rows)
        return explain_result(result, request.mention.spans or (), own, queries, matched)


def _outside(top_k: int, count: int) -> InvalidInputError:
    return InvalidInputError(f"top_k: {top_k} is not between 1 and the {count} candidates", field="top_k")
