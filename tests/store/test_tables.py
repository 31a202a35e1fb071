"""Stores out of tables and into them: the same numbers, in any order, and a sentence for every table that is none."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_data, make_net

from rholoss import IrreducibleLossStore, hash_ids
from rholoss.store import sorting

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 100
LOSSES = np.random.default_rng(0).exponential(size=N).astype(np.float32)
ORDER = np.random.default_rng(1).permutation(N)
NAMES = [f"img/{i}.jpg" for i in range(N)]


def table(ids=None, losses=None, **columns):
    ids = ORDER if ids is None else ids
    return pa.table({"id": ids, "irreducible_loss": LOSSES[ORDER] if losses is None else losses, **columns})


def parts(folder, whole, n=4, **how):
    folder.mkdir(parents=True)
    for i, start in enumerate(range(0, len(whole), len(whole) // n)):
        pq.write_table(whole.slice(start, len(whole) // n), folder / f"part-{i:05d}.parquet", **how)
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").touch()
    return folder


@pytest.fixture
def sources(tmp_path):
    import datasets

    whole = table(label=["a"] * N)
    folder = parts(tmp_path / "parts", whole)
    for year in (1, 2):
        parts(tmp_path / "hive" / f"year={year}", whole.slice((year - 1) * 50, 50), 2)
    with pa.ipc.new_file(tmp_path / "t.arrow", whole.schema) as file:
        file.write_table(whole)
    pq.write_table(whole, tmp_path / "t.parquet", row_group_size=7)
    return {
        "table": whole,
        "stream": pa.RecordBatchReader.from_batches(whole.schema, whole.to_batches(9)),
        "batch": whole.to_batches()[0],
        "frame": whole.to_pandas(),
        "columns": {"id": torch.from_numpy(ORDER).numpy(), "irreducible_loss": LOSSES[ORDER].tolist()},
        "folder": folder,
        "partitioned": tmp_path / "hive",
        "Arrow file": tmp_path / "t.arrow",
        "Parquet file": str(tmp_path / "t.parquet"),
        "datasets": datasets.Dataset(whole),
        "datasets, picked": datasets.Dataset(pa.concat_tables([whole.slice(50), whole.slice(0, 50)])).select(range(N)),
        "pyarrow data set": pa.dataset.dataset(folder),
    }


KINDS = ["table", "stream", "batch", "frame", "columns", "folder", "partitioned", "Arrow file", "Parquet file", "datasets"]


class TestIn:
    @pytest.mark.parametrize("kind", [*KINDS, "datasets, picked", "pyarrow data set"])
    @pytest.mark.parametrize("mapped", [False, True])
    def test_every_kind_is_the_same_store(self, sources, kind, mapped, tmp_path, monkeypatch):
        monkeypatch.setattr(sorting, "RUN", 16)
        monkeypatch.setattr(sorting, "_WINDOW", 40)
        monkeypatch.setattr("rholoss.store.table_sources.ROWS", 10)
        store = IrreducibleLossStore.from_table(sources[kind], path=tmp_path / "il" if mapped else None)
        assert store.ids is None
        assert store.losses.tolist() == LOSSES.tolist()
        assert store.is_mapped == mapped
        assert not list(tmp_path.glob("tmp*"))

    def test_rows_of_one_source_may_be_the_indices(self):
        store = IrreducibleLossStore.from_table({"irreducible_loss": LOSSES}, ids=None)
        assert (store.ids, store.losses.tolist()) == (None, LOSSES.tolist())

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
    def test_names_are_hashed(self, kind):
        store = IrreducibleLossStore.from_table(table(pa.array([NAMES[i] for i in ORDER]).cast(kind)))
        assert store[hash_ids(NAMES)].tolist() == LOSSES.tolist()

    @pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint32, np.uint64])
    def test_integers_of_any_width_are_ids(self, kind):
        store = IrreducibleLossStore.from_table(table(ORDER.astype(kind) * 3 + 5))
        assert store.ids.tolist() == (np.arange(N) * 3 + 5).tolist()

    def test_a_part_of_the_data_keeps_its_ids(self):
        meta = {"data": {"length": 2 * N, "labels": None, "sample": {}}}
        assert IrreducibleLossStore.from_table(table(), meta=meta).ids.tolist() == list(range(N))


class TestOut:
    @pytest.mark.parametrize("ids", [None, ORDER * 7 - 90])
    def test_and_in_again_is_the_same_store(self, ids, tmp_path):
        losses = torch.from_numpy(LOSSES.copy())
        store = IrreducibleLossStore(losses, ids, meta={"views": 2, "mine": "a"})
        store.write_table(tmp_path / "il.parquet")
        for source in (tmp_path / "il.parquet", store.to_table(), store.to_table().to_batches()[0]):
            again = IrreducibleLossStore.from_table(source)
            assert again.digest == store.digest
            assert again.meta == store.meta

    def test_has_the_known_losses_alone(self):
        losses = torch.from_numpy(LOSSES.copy())
        losses[[3, 50]] = torch.nan
        found = IrreducibleLossStore(losses).to_table()
        assert found.num_rows == N - 2
        again = IrreducibleLossStore.from_table(found)
        assert torch.equal(again[torch.arange(N)], losses) or torch.allclose(again[torch.arange(N)], losses, equal_nan=True)

    def test_names_and_types_are_those_of_the_page(self, tmp_path):
        IrreducibleLossStore([0.5]).write_table(tmp_path / "il.parquet")
        schema = pq.read_schema(tmp_path / "il.parquet")
        assert [(field.name, str(field.type)) for field in schema] == [("id", "int64"), ("irreducible_loss", "float")]


def changed(at, value, column=None):
    values = (LOSSES[ORDER] if column is None else column).tolist()
    values[at] = value
    return values


class TestBad:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (table(ORDER % 98), r"2 ids appear more than once: 0, 1; every example has one irreducible loss"),
            (table(ORDER // 10), r"10 ids appear more than once: 0, 1, 2, 3, 4 and 5 more;"),
            (table(losses=changed(3, np.nan)), rf"1 irreducible losses are not finite \(null, NaN .*: ids {ORDER[3]};"),
            (table(losses=pa.array(changed(3, None), pa.float32())), rf"1 irreducible losses are not finite .*: ids {ORDER[3]};"),
            (table(losses=changed(3, -0.5)), rf"1 irreducible losses are negative: ids {ORDER[3]};"),
            (table(losses=ORDER), r"irreducible losses must be floating, got column 'irreducible_loss' of type int64"),
            (table(ORDER.astype(float)), r"ids must be integers, strings or bytes, got column 'id' of type double"),
            (table(ORDER > 3), r"ids must be integers, strings or bytes, got column 'id' of type bool"),
            (table(pa.array(changed(7, None, ORDER))), r"1 ids are null, the first in row 7"),
            (
                table().rename_columns(["id", "loss"]),
                r"expected a column 'irreducible_loss', got \['id', 'loss'\]; pass the names",
            ),
            (table().slice(0, 0), "expected at least one row, got a table without any"),
        ],
    )
    @pytest.mark.parametrize("as_file", [False, True])
    def test_rows_are_named_and_nothing_is_written(self, source, message, as_file, tmp_path):
        if as_file:
            pq.write_table(source, tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=message):
            IrreducibleLossStore.from_table(tmp_path / "t.parquet" if as_file else source, path=tmp_path / "il")
        assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"] * as_file

    def test_a_half_written_part_is_named(self, tmp_path):
        folder = parts(tmp_path / "t", table())
        part = folder / "part-00002.parquet"
        whole = part.read_bytes()
        for content in (whole[: len(whole) // 2], b"", whole[:-1], whole[:40] + bytes(200) + whole[240:]):
            part.write_bytes(content)
            with pytest.raises(ValueError, match=r"part-00002.parquet: "):
                IrreducibleLossStore.from_table(folder, path=tmp_path / "il")
            assert [path.name for path in tmp_path.iterdir()] == ["t"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [("_temporary/0/x", "_temporary is there: a job still writes"), ("p.parquet.tmp", "no Parquet file: it")],
    )
    def test_what_a_running_job_leaves_is_named(self, tmp_path, name, message):
        folder = parts(tmp_path / "t", table())
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        with pytest.raises(ValueError, match=message):
            IrreducibleLossStore.from_table(folder)

    def test_a_part_of_another_type_is_named(self, tmp_path):
        folder = parts(tmp_path / "t", table())
        pq.write_table(table(NAMES), folder / "part-9.parquet")
        with pytest.raises(ValueError, match=r"part-9.parquet: column 'id' is string here and int64 in other parts"):
            IrreducibleLossStore.from_table(folder)

    def test_parts_of_different_stores_are_not_mixed(self, tmp_path):
        for views in (1, 2):
            IrreducibleLossStore([0.5], [views], meta={"views": views}).write_table(tmp_path / f"{views}.parquet")
        with pytest.raises(ValueError, match="parts of this table were written from different stores"):
            IrreducibleLossStore.from_table(tmp_path)

    def test_the_ids_of_other_data_are_named(self, tmp_path):
        data = make_data(N)
        assert IrreducibleLossStore.from_table(table(), data=data).meta.data["length"] == N
        for ids, message in (
            (ORDER + 40, r"expected ids from 0 to 99, got 40 others: 100, 101, 102, 103, 104 and 35 more; this is the table of"),
            (ORDER - 1, r"expected ids from 0 to 99, got 1 others: -1;"),
        ):
            with pytest.raises(ValueError, match=message):
                IrreducibleLossStore.from_table(table(ids), data=data, path=tmp_path / "il")
        some = table().filter(pa.compute.is_in(table()["id"], pa.array([0, 3, 4, 99, 50]), skip_nulls=False))
        for source, message in (
            (some, r"95 of 100 examples have no row: ids 1, 2, 5, 6, 7 and 90 more; score them, or leave data= out"),
            (table().filter(pa.compute.not_equal(table()["id"], 99)), r"1 of 100 examples have no row: ids 99;"),
        ):
            with pytest.raises(ValueError, match=message):
                IrreducibleLossStore.from_table(source, data=data, path=tmp_path / "il")
        made = IrreducibleLossStore.from_model(make_net(0), data).to_table()
        with pytest.raises(ValueError, match="this table was made from other data than these: its labels"):
            IrreducibleLossStore.from_table(made, data=make_data(N, seed=5))
        assert list(tmp_path.iterdir()) == []

    def test_files_without_ids_have_no_order(self, tmp_path):
        with pytest.raises(ValueError, match=r"the rows of 4 files have no order that is an index; pass ids="):
            IrreducibleLossStore.from_table(parts(tmp_path / "t", table()), ids=None)

    @pytest.mark.parametrize("source", [3, object(), [1.0]])
    def test_what_is_no_table_is_said_so(self, source):
        with pytest.raises(TypeError, match="source must be a Parquet or Arrow file, a folder of Parquet files, .* got"):
            IrreducibleLossStore.from_table(source)


@pytest.mark.parametrize("call", ["from_table({})", "([0.5]).to_table()", "([0.5]).write_table('a')"])
def test_without_pyarrow_the_extra_is_named(call):
    dot = "." if call.startswith("from") else ""
    code = f"import sys; sys.modules['pyarrow'] = None; from rholoss import IrreducibleLossStore as S; S{dot}{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "table needs pyarrow, which is not installed; run: pip install 'rholoss[tables]'" in done.stderr
