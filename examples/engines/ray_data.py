"""Score a folder of Parquet files with Ray Data, in a pool of actors; a run that was killed resumes by the ids.

    python examples/engines/ray_data.py examples-folder losses-folder --workers 2

Needs: pip install 'rholoss[tables]' 'ray[data]'
"""

import argparse
import os
import signal
from pathlib import Path

import ray
from ray.data.checkpoint import CheckpointConfig
from scoring_task import Clocked, forward, make_model, measured


class Killed(Clocked):
    """Ends its own process in the middle of the data, the first time."""

    mark = Path()

    def __call__(self, batch):
        if not self.mark.exists() and (batch["id"].to_numpy() == 5_000).any():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", type=Path, help="end a worker once, and leave this file as a mark")
    parser.add_argument("--checkpoint", type=Path, help="where the ids of finished rows are kept, to resume")
    args = parser.parse_args()
    ray.init(num_cpus=args.workers, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30)
    if args.checkpoint:
        ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig("id", str(args.checkpoint))
    scorer = type("Scorer", (Killed,), {"mark": args.kill}) if args.kill else Clocked
    data = ray.data.read_parquet(str(args.source))
    with measured():
        data.map_batches(
            scorer,
            fn_constructor_args=[make_model],
            fn_constructor_kwargs={"forward": forward},
            compute=ray.data.ActorPoolStrategy(size=args.workers),
            num_cpus=0.5,  # with GPUs: num_gpus=1
            batch_size=4096,
            batch_format="pyarrow",
        ).write_parquet(str(args.target))


if __name__ == "__main__":
    main()
