"""Score a data set of Hugging Face with its map, in several processes.

    python examples/engines/datasets_map.py examples-folder losses.parquet --workers 2

Needs: pip install 'rholoss[tables]' datasets
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from scoring_task import make_scorer, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    cache = str(args.target.parent / "cache")
    data = load_dataset("parquet", data_files=str(args.source / "*.parquet"), split="train", cache_dir=cache).with_format("arrow")
    with measured():
        scored = data.map(make_scorer(), batched=True, batch_size=4096, num_proc=args.workers, remove_columns=["x", "y"])
    scored.to_parquet(str(args.target))


if __name__ == "__main__":
    main()
