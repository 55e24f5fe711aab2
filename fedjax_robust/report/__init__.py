"""Results on disk, the paper's numbers beside ours as Markdown tables, and plots.

Results are *rows*: one mapping per run (one seed of one cell of a table), with the metric and every
setting as columns. Errors and rates are fractions between 0 and 1 everywhere, and each table and
axis says so. Matplotlib is imported only when something is drawn.

Files are written atomically: whoever reads one, also after a crash, sees the old content or the
new, never a part.
"""

from fedjax_robust.report.folders import (
    ABOUT,
    Sweep,
    Table,
    read_about,
    read_sweep,
    read_table,
    sweep_table,
    table_text,
    write_about,
    write_sweep,
    write_table,
)
from fedjax_robust.report.origin import provenance, untraceable
from fedjax_robust.report.plots import (
    COLOURS,
    plot_comparison,
    plot_curves,
    plot_heat_map,
    plot_sweep,
)
from fedjax_robust.report.results import Row, load_cell, read_rows, save_cell, write_rows
from fedjax_robust.report.tables import (
    Cell,
    Summary,
    comparison_table,
    differences,
    markdown_table,
    safe,
    summarize,
)

__all__ = [
    "ABOUT",
    "COLOURS",
    "Cell",
    "Row",
    "Summary",
    "Sweep",
    "Table",
    "comparison_table",
    "differences",
    "load_cell",
    "markdown_table",
    "plot_comparison",
    "plot_curves",
    "plot_heat_map",
    "plot_sweep",
    "provenance",
    "read_about",
    "read_rows",
    "read_sweep",
    "read_table",
    "safe",
    "save_cell",
    "summarize",
    "sweep_table",
    "table_text",
    "untraceable",
    "write_about",
    "write_rows",
    "write_sweep",
    "write_table",
]
