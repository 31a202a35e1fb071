"""Score a folder of Parquet files with one process per GPU, each a share of the files; a run that was killed skips whole files.

    torchrun --nproc-per-node 2 examples/engines/ranks.py examples-folder losses-folder

Needs: pip install 'rholoss[tables]'
"""

import argparse
import os
from pathlib import Path

import pyarrow.parquet as pq
from scoring_task import make_scorer, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    scorer = make_scorer()
    args.target.mkdir(exist_ok=True)
    mine = [file for file in sorted(args.source.glob("*.parquet"))[rank::ranks] if not (args.target / file.name).exists()]
    with measured():
        for done, file in enumerate(mine):
            partial = args.target / f".{file.name}"  # a name that no reader looks at
            writer = None
            for batch in pq.ParquetFile(file).iter_batches(4096):
                scored = scorer(batch)
                writer = writer or pq.ParquetWriter(partial, scored.schema)
                writer.write_batch(scored)
            writer.close()
            os.replace(partial, args.target / file.name)
            print(f"rank {rank}: {done + 1} of {len(mine)} files")


if __name__ == "__main__":
    main()
