"""Every engine makes the store that ``from_model`` makes, also when workers are killed: ``make engines``."""

import subprocess
import sys
from pathlib import Path

import pytest

ENGINES = Path(__file__).parents[1] / "examples" / "engines"
sys.path.insert(0, str(ENGINES))


@pytest.mark.parametrize(
    ("engine", "package"),
    [("ranks", "pyarrow"), ("datasets", "datasets"), ("ray", "ray"), ("killed", "ray"), ("spark", "pyspark")],
)
def test_the_store_is_the_same(engine, package):
    pytest.importorskip(package)
    call = [sys.executable, str(ENGINES / "compare_engines.py"), "--examples", "20000", "--engines", engine]
    done = subprocess.run(call, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    name = "ray, one worker killed" if engine == "killed" else engine
    row = next(line for line in done.stdout.splitlines() if line.startswith(f"| {name} |"))
    assert int(row.split("|")[-2]) <= 1  # units in the last place
