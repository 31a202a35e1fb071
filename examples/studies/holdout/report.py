"""Prints the tables of the study and draws its plots, from the JSON lines of its runs.

python examples/studies/holdout/report.py [--results FILE] [--plots docs/pages]
python examples/studies/holdout/report.py --update docs/pages/dirty_holdout.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # the folder of examples, rather than this folder

from studies.holdout.results import RESULTS, Results, read_lines
from studies.holdout.tables import by_name, tables, updated


def draw(results: Results, folder: Path) -> None:
    """Draw the plots into a folder."""
    from studies.holdout.plots import plot_accuracy, plot_mechanism  # the tables do without matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    plot_accuracy(results, folder / "dirty_holdout_accuracy.png")
    if results.of(("Fashion-MNIST", "0.3"), "cross-fit"):
        plot_mechanism(results, folder / "dirty_holdout_mechanism.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tables and plots of the study of noisy holdouts.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of JSON lines (default: %(default)s)")
    parser.add_argument("--plots", type=Path, help="folder for the plots (default: none are drawn)")
    parser.add_argument("--update", type=Path, help="put the tables into this page")
    options = parser.parse_args(arguments)
    lines = read_lines(options.results)
    if options.update:
        options.update.write_text(updated(options.update.read_text(), by_name(lines)))
    else:
        print(tables(lines))
    if options.plots:
        draw(Results(lines), options.plots)


if __name__ == "__main__":
    main()
