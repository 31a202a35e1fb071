"""Run a notebook from top to bottom and write it with its outputs, so that nothing else changes from run to run.

    python tests/execute_notebook.py NOTEBOOK [--out FILE] [--timeout SECONDS] [--before CODE] [--after CODE]

Without ``--out`` the notebook itself is written. It runs in the current folder. ``--before`` and ``--after`` are code of cells
that are run as well, first and last.
"""

import argparse
import copy
from pathlib import Path


def main():
    import nbformat  # here: where this is only collected, the packages need not be there
    from nbclient import NotebookClient

    parser = argparse.ArgumentParser(description="Run a notebook and write it with its outputs.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, help="where to write it (default: where it is)")
    parser.add_argument("--timeout", type=int, default=300, help="most seconds for a cell (default: 300)")
    parser.add_argument("--before", help="code to run first")
    parser.add_argument("--after", help="code to run last")
    options = parser.parse_args()
    notebook = nbformat.read(options.notebook, as_version=4)
    about = copy.deepcopy(notebook.metadata)
    cells = [nbformat.v4.new_code_cell(code, id=name) for name, code in vars(options).items() if name == "before" and code]
    cells += notebook.cells
    if options.after:
        cells.append(nbformat.v4.new_code_cell(options.after, id="after"))
    notebook.cells = cells
    NotebookClient(notebook, timeout=options.timeout, kernel_name="python3", record_timing=False).execute()
    notebook.metadata = about  # not the version of this Python
    nbformat.write(notebook, options.out or options.notebook)


if __name__ == "__main__":
    main()
