"""Plot of ``scan_growth.json``: time a mention and memory against the number of entities.

python -m benchmarks.scan.growth_plot docs/scale.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import RESULTS


def draw(result: Path, out: Path) -> None:
    """Read the result file and write the plot (PNG), one panel for time and one for bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = json.loads(result.read_text("utf-8"))["rows"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    time, memory = figure.subplots(1, 2)
    for mode in dict.fromkeys(row["mode"] for row in rows):
        own = [row for row in rows if row["mode"] == mode]
        sizes = [row["n"] for row in own]
        time.plot(sizes, [row["ms"] for row in own], "o-", label=mode)
        memory.plot(sizes, [row["pass_bytes"] / 1e9 for row in own], "o-", label=f"{mode}: read by a pass")
    sizes = [row["n"] for row in rows if row["mode"] == "coded"]
    resident = [row["resident_bytes"] / 1e9 for row in rows if row["mode"] == "coded"]
    memory.plot(sizes, resident, "o--", label="resident in memory")
    time.set(title="One mention, two cores", xlabel="entities", ylabel="ms", xscale="log", yscale="log")
    memory.set(title="Bytes", xlabel="entities", ylabel="GB", xscale="log", yscale="log")
    for axes in (time, memory):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    draw(RESULTS / "scan_growth.json", Path(sys.argv[1]))
