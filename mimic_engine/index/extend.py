"""The codes of the next snapshot: those of segments that stay, copies for copied rows, new ones for new rows.

Copied and not worked out again: two centroids may be as near as makes no
difference, and a change must not touch the answers about other entities.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from mimic_engine.index.arrays import read_array_file
from mimic_engine.index.codes import Codes, token_queries
from mimic_engine.index.parts import Part, pieces
from mimic_engine.index.recode import code_blocks, row_blocks, write_segment_codes
from mimic_engine.index.records import ARRAYS, CENTROIDS, SEGMENTS, CodesRecord, codes_file
from mimic_engine.index.store import Index
from mimic_engine.types import EntityArrays


def extend_codes(index: Index, parts: list[Part]) -> CodesRecord | None:
    """Write the codes of the parts that are new.

    Parameters
    ----------
    index : the old snapshot
    parts : the segments of the new one, whose files are written

    Returns
    -------
    The record for the manifest; None where the index has no codes.
    """
    record = index.manifest.codes
    if record is None or index.codes is None:
        return None
    staying = {CENTROIDS, *(codes_file(p.record.name) for p in parts)}
    record = replace(record, files={name: f for name, f in record.files.items() if name in staying})
    for part in parts:
        if codes_file(part.record.name) not in record.files:
            record = _code_part(index, index.codes, record, part)
    return record


def _code_part(index: Index, codes: Codes, record: CodesRecord, part: Part) -> CodesRecord:
    name, copied = part.record.name, part.copied_rows
    arrays = EntityArrays(**read_array_file(index.path / SEGMENTS / name / ARRAYS))
    copies = (codes.segments[segment][within] for segment, within in pieces(index, copied))
    coded = code_blocks(arrays, codes.centroids, len(copied))
    record = write_segment_codes(index.path, record, name, arrays, chain(copies, coded))
    return _with_drift(record, codes, arrays, len(copied))


def _with_drift(record: CodesRecord, codes: Codes, arrays: EntityArrays, start: int) -> CodesRecord:
    """The record with the rows from ``start`` on counted in its mean drift."""
    total, count = record.drift * record.coded_later, record.coded_later
    for block in row_blocks(arrays, start):
        rows = block.stop - block.start
        weight = None if arrays.tglu_token_weight is None else arrays.tglu_token_weight[block]
        total += rows * codes.drift(token_queries(arrays, block), weight)
        count += rows
    return replace(record, drift=total / count, coded_later=count) if count else record
