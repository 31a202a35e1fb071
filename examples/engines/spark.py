"""Score a folder of Parquet files with Spark, here in local mode.

    python examples/engines/spark.py examples-folder losses-folder --workers 2

Needs: pip install 'rholoss[tables]' pyspark pandas, and Java 17 (Debian: apt-get install default-jre-headless)
"""

import argparse
import os
import sys
from pathlib import Path

from pyspark.sql import SparkSession
from scoring_task import make_scorer, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else Spark's workers run the first python3 on the path
    settings = {
        "spark.ui.showConsoleProgress": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parent),
    }
    builder = SparkSession.builder.master(f"local[{args.workers}]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    data = spark.read.parquet(str(args.source))
    with measured():
        data.mapInPandas(make_scorer(), "id long, irreducible_loss float").write.parquet(str(args.target))
    spark.stop()


if __name__ == "__main__":
    main()
