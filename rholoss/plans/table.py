"""Plans as Parquet tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rholoss.files import StrPath, atomic_write

if TYPE_CHECKING:
    from rholoss.plans.plan import SelectionPlan

_STEPS = 1 << 14  # of a row group


def write_parquet(plan: SelectionPlan, path: StrPath) -> None:
    """Write the columns step, position, index and, if recorded, weights and scores; whole or not at all, in bounded memory."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError("to_parquet needs pyarrow, which is not installed; pip install 'rholoss[tables]'") from None
    import os

    with atomic_write(os.fsdecode(path)) as file:
        writer: Any = None
        for first in range(0, plan.steps, _STEPS):
            table = pa.table(plan.rows(first, min(first + _STEPS, plan.steps)))
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
