"""Pieces of the report's Markdown: tables, and where a result comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.report.result_files import Provenance


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]


def source(provenance: Provenance) -> list[str]:
    """The command, commit, machine and date of a result."""
    commit = provenance.commit[:12] if provenance.commit else "none"
    changed = " with changes" if provenance.dirty else ""
    return [
        f"`{provenance.command}` (commit {commit}{changed}; {provenance.cpu}, {provenance.cores} cores; "
        f"{provenance.date})",
        "",
    ]


def anchor(heading: str) -> str:
    """Anchor that GitHub makes of a heading."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
