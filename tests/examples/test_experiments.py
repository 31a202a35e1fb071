"""Every named experiment runs, a row repeats itself bit for bit, and the report's numbers are those of the rows."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "pages" / "experiments.md"


@pytest.fixture(scope="module", autouse=True)
def experiments_on_the_path():
    sys.path.insert(0, str(EXAMPLES))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    sys.path.remove(str(EXAMPLES))


def module(name):
    return importlib.import_module(f"experiments.{name}")


@pytest.fixture(scope="module")
def smoked(tmp_path_factory, experiments_on_the_path):
    """The data and the results of a smoke run of everything."""
    folder = tmp_path_factory.mktemp("smoke")
    module("smoke").write_tiny_files(folder / "data")
    with module("smoke").without_an_encoder():
        yield folder


def small(*names):
    return [module("smoke").shrunk(module("experiments").EXPERIMENTS[name]) for name in names]


def performed(folder, results, *names):
    run = module("run")
    return run.perform(run.planned(small(*names), [0]), module("bench").Bench(folder / "data"), results, None)


def rows_of(results):
    return {row["id"]: row for row in module("results").read(results)}


# --- running --------------------------------------------------------------------------------------------------------------------


def every_name():
    sys.path.insert(0, str(EXAMPLES))
    try:
        return list(module("experiments").EXPERIMENTS)
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("name", every_name())
def test_every_experiment_runs_on_small_files_in_the_official_formats(name, smoked):
    if not module("smoke").can_run(module("experiments").EXPERIMENTS[name]):
        pytest.skip("needs transformers")
    results = smoked / "results.jsonl"
    performed(smoked, results, name)
    rows = rows_of(results)
    (experiment,) = small(name)
    for setup in experiment.setups.values():
        row = rows[module("setups").row_id(setup, 0)]
        assert row["evaluations"]["step"] == [1, 2, 3]
        assert row["examples_trained"] == 3 * setup.n_b
        assert row["in_data"].keys() == row["selected"].keys()


def test_every_registered_method_is_in_the_table():
    import rholoss

    setups = [s for experiment in module("experiments").EXPERIMENTS.values() for s in experiment.setups.values()]
    where_the_store_is_whole_it_is_rho_loss = {"lazy_rho_loss"}
    assert {setup.method for setup in setups} >= set(rholoss.selector_names()) - where_the_store_is_whole_it_is_rho_loss


def test_setups_of_an_experiment_share_all_but_what_is_compared():
    experiment = module("experiments").EXPERIMENTS["noise-30"]
    setups = [s for label, s in experiment.setups.items() if "lr" not in label and "cosine" not in label]
    shared = ("task", "task_options", "model", "model_options", "lr", "schedule", "weight_decay", "n_b", "every")
    for field in shared:
        assert all(getattr(s, field) == getattr(setups[0], field) for s in setups), field


def test_what_was_scored_is_counted(smoked, tmp_path):
    results = tmp_path / "results.jsonl"
    performed(smoked, results, "noise-30", "active-learning")
    scored = {row["label"]: row["examples_scored"] for row in rows_of(results).values()}
    assert scored["uniform"] == scored["irreducible loss"] == 0
    assert scored["RHO-LOSS"] == scored["train loss"] == 3 * 8
    assert scored["RHO-LOSS, online"] == 2 * 3 * 8
    assert scored["BALD"] == 2 * 3 * 8  # passes
    assert scored["SVP, entropy"] == 60  # once, the whole of the data


def test_runs_that_have_a_row_are_skipped_and_a_cut_off_line_is_done_again(smoked, tmp_path):
    results = tmp_path / "results.jsonl"
    first = performed(smoked, results, "gate")
    assert performed(smoked, results, "gate") == 0
    whole = rows_of(results)
    results.write_text(results.read_text()[:-200])  # killed while writing
    assert performed(smoked, results, "gate") == 1
    again = rows_of(results)
    assert len(again) == first
    assert again.keys() == whole.keys()
    assert all(again[key]["weights"] == whole[key]["weights"] for key in whole)


def test_the_trainer_of_transformers_never_draws_what_looks_wrong(smoked, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    trainer, (experiment,) = module("trainer"), small("sst2-finetuned")
    setup = experiment.setups["filtered uniform, 1,000 trusted"]
    monkeypatch.setattr(trainer, "TUNED", replace(setup, task_options={**setup.task_options, "length": 16}))
    monkeypatch.setattr(trainer, "TRUSTED_BAG", setup.irreducible)
    drawn, collate = [], trainer.collate
    monkeypatch.setattr(trainer, "collate", lambda examples: drawn.append(examples) or collate(examples))
    threads = torch.get_num_threads()
    trainer.main(["--data", str(smoked / "data"), "--steps", "4", "--trusted", "20"])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert re.findall(r"(\w+): [\d.]+% of the test sentences are right after 4 steps", printed) == ["Trainer", "FilteredTrainer"]
    kept = trainer.FilteredTrainer.store.losses <= trainer.GATE
    task = module("tasks").load_task("sst2", smoked / "data", **{**trainer.TUNED.task_options, "holdout": 20, "tested": None})
    allowed = {str(task.train[i]) for i in kept.nonzero().flatten().tolist()}
    assert all(str(example) in allowed for batch in drawn[-4:] for example in batch)
    assert 0 < len(allowed) < len(task.train)


def test_a_row_repeats_itself_bit_for_bit(smoked, tmp_path, capsys):
    run, results = module("run"), tmp_path / "results.jsonl"
    performed(smoked, results, "gate")
    bench = module("bench").Bench(smoked / "data")
    for name in (*rows_of(results), "1"):
        assert run.repeat(name, bench, results)
    assert "the same, to the last bit" in capsys.readouterr().out
    row = next(iter(rows_of(results).values()))
    module("results").append(results, {**row, "weights": "another"})
    assert not run.repeat(row["id"], bench, results)
    with pytest.raises(SystemExit, match="no row nothing among"):
        run.repeat("nothing", bench, results)


def test_a_setup_survives_being_written_down():
    setups = module("setups")
    for experiment in module("experiments").EXPERIMENTS.values():
        for setup in experiment.setups.values():
            again = setups.rebuilt(json.loads(json.dumps(setups.described(setup))))
            assert setups.row_id(again, 3) == setups.row_id(setup, 3)
            assert setups.row_id(setup, 3) != setups.row_id(setup, 4)


def test_a_run_of_two_experiments_is_performed_once():
    run = module("run")
    alone, together = (run.planned(small(*names), None) for names in (("noise-30",), ("noise-30", "gate", "boltzmann")))
    assert [run[1:] for run in together] == [run[1:] for run in alone]


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(SystemExit, match="no experiment is named noise-31; the names are noise-30"):
        module("run").main(["noise-31"])


def test_one_command_runs_an_experiment_on_tiny_files(tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    assert module("run").main(["--smoke", "gate", "--results", str(results)]) == 0
    assert [row["experiment"] for row in rows_of(results).values()] == ["gate"] * 4
    assert module("run").main(["--list"]) == 0
    assert "noise-30" in capsys.readouterr().out


def test_evaluations_go_to_tensorboard_where_that_is_asked_for(smoked, tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, tag, value, step):
            written.append((self.folder.parts[-3:], tag, step))

        def close(self):
            written.append("closed")

    run = module("run")
    monkeypatch.setattr(run, "summary_writer", Writer)
    runs = run.planned(small("gate"), [0])[:1]
    run.perform(runs, module("bench").Bench(smoked / "data"), tmp_path / "results.jsonl", tmp_path / "board")
    assert written == [(("gate", "uniform", "0"), "test", step) for step in (1, 2, 3)] + ["closed"]


def test_evaluations_are_often_at_first_and_at_the_end():
    at = module("loop").evaluated_at
    assert sorted(at(3, 1)) == [1, 2, 3]
    assert sorted(at(40, 1)) == [*range(1, 21), 28, 36, 40]


# --- measures -------------------------------------------------------------------------------------------------------------------


def test_the_metrics_are_those_of_scikit_learn():
    from scipy.stats import spearmanr
    from sklearn.metrics import accuracy_score, matthews_corrcoef, roc_auc_score

    measures, generator = module("measures"), torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(200, 2, generator=generator).round(decimals=1), torch.randint(2, (200,), generator=generator)
    said, score = outputs.argmax(1), outputs[:, 1] - outputs[:, 0]
    assert measures.accuracy(outputs, targets) == pytest.approx(accuracy_score(targets, said))
    assert measures.matthews(outputs, targets) == pytest.approx(matthews_corrcoef(targets, said))
    assert measures.auc(outputs, targets) == pytest.approx(roc_auc_score(targets, score.double().round(decimals=6)), abs=1e-3)
    assert measures.spearman(outputs[:, 0], outputs[:, 1]) == pytest.approx(spearmanr(outputs[:, 0], outputs[:, 1])[0])


# --- reporting ------------------------------------------------------------------------------------------------------------------


def hand_made(setup, seed, metric, wrong, step=(10, 20, 40)):
    """A row with round numbers."""
    return {
        "id": module("setups").row_id(setup, seed),
        "seed": seed,
        "metric": "accuracy",
        "evaluations": {
            "step": list(step),
            "metric": list(metric),
            "seconds": [s / 10 for s in step],
            "scored": [0 if setup.method == "uniform" else 100 * s for s in step],
        },
        "final": metric[-1],
        "seconds": step[-1] / 10,
        "seconds_before": 0.0 if setup.method == "uniform" else 5.0,
        "selected": {"wrong": wrong},
        "in_data": {"wrong": 0.3},
        "already_right": 0.5,
        "repeated": 0.25,
        "irreducible": None if setup.method == "uniform" else {"seconds": 5.0, "metric": 0.8, "parameters": 1},
        "rank_correlation": None,
        "examples": [1000, 0 if setup.task_options.get("holdout") == "none" else 90, 10, 100],
    }


def toy():
    """An experiment of three setups and its rows for three seeds."""
    setups, table = module("setups"), module("experiments")
    uniform = setups.Setup("digits", steps=40, keep=1.0)
    made = {"uniform": uniform, "uniform, lr 3e-4": replace(uniform, lr=3e-4), "RHO-LOSS": replace(uniform, method="rho_loss")}
    experiment = table.Experiment("toy", "a toy", made)
    rows = []
    for seed in (0, 1, 2):
        rows.append(hand_made(made["uniform"], seed, (0.5, 0.7, 0.6), 0.3))
        rows.append(hand_made(made["uniform, lr 3e-4"], seed, (0.5, 0.6, 0.75), 0.3))
        rows.append(hand_made(made["RHO-LOSS"], seed, (0.72, 0.74, 0.9) if seed else (0.1, 0.69, 0.9), 0.1 * seed))
    return experiment, rows


def cells(text, label):
    """The heads and cells of a label's row, through all tables that have it."""
    found = []
    for part in text.split("\n\n"):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")]
        found += [pair for line in lines if line[0] == label for pair in zip(lines[0], line, strict=True) if pair[1] != label]
    return found


def test_the_tables_say_what_is_in_the_rows():
    experiment, rows = toy()
    report = module("report")
    results = module("summary").results_of(experiment, rows)
    assert results.tuned() == "uniform, lr 3e-4"
    found = [cell for _, cell in cells(report.outcome(results), "RHO-LOSS")]
    assert found[:3] == ["10 (10 to 40)", "2.0 (0.5 to 2.0)", "2.0 (1.0 to 2.0)"]
    assert found[3:5] == ["40", "1.0"]
    assert found[5:] == ["90.0", "90.0", "90.0", "40"]
    assert [cell for _, cell in cells(report.outcome(results), "uniform")][:5] == ["20", "1.0", "1.0", "never", "never"]
    assert cells(report.selected(results), "RHO-LOSS")[0] == ("wrong, % (30.0 in the data)", "10.0 (0.0 to 20.0)")
    cost = dict(cells(report.cost(results), "RHO-LOSS"))
    assert cost["steps"] == "10 (10 to 40)"
    assert cost["examples scored"] == "1,000 (1,000 to 4,000)"
    assert cost["seconds"] == "1.0 (1.0 to 4.0)"
    assert cost["seconds, irreducible losses included"] == "6.0 (6.0 to 9.0)"
    assert "Irreducible-loss models: 80.0 %, in 5.0 seconds." in report.report(results)


def test_the_best_plain_training_is_found_by_the_seeds_that_all_have():
    experiment, rows = toy()
    row_id = module("setups").row_id
    uniform, slower = (experiment.setups[label] for label in ("uniform", "uniform, lr 3e-4"))
    for row in rows:
        if row["id"] in {row_id(slower, 1), row_id(slower, 2)}:
            row["evaluations"]["metric"] = [0.5, 0.6, 0.65]  # harder seeds, which the other has not run
    rows = [row for row in rows if row["id"] not in {row_id(uniform, 1), row_id(uniform, 2)}]
    assert module("summary").results_of(experiment, rows).tuned() == "uniform, lr 3e-4"


def test_the_overview_has_a_line_for_each_experiment():
    experiment, rows = toy()
    report, results_of = module("report"), module("summary").results_of

    def line(kind, setups=experiment.setups, rows=rows):
        made = results_of(replace(experiment, kind=kind, setups=setups), rows)
        return [cell for _, cell in cells(report.overview({"toy": made}), "`toy`: a toy")]

    assert line("methods") == ["MLP 3 x 512: RHO-LOSS", "1.0", "0.4", "+15.0", "100"]  # 4 s against 9 s with 5 s before
    assert line("pairs") == line("plans") == []
    setup = experiment.setups["RHO-LOSS"]
    faster = replace(setup, keep=0.5, model="vgg", task_options={"holdout": "none"})
    more = rows + [hand_made(faster, seed, (0.8, 0.9, 0.7), 0.1, step=(1, 2, 4)) for seed in (0, 1, 2)]
    assert line("paying", experiment.setups | {"faster": faster}, more) == ["convolutions: faster", "40.0", "0.8", "-5.0", "0"]
    lucky = [hand_made(replace(setup, keep=0.25), 0, (0.9, 0.9, 0.9), 0.1, step=(1, 2, 4))]  # a seed of three
    setups = experiment.setups | {"lucky": replace(setup, keep=0.25), "faster": faster}
    assert line("paying", setups, more + lucky)[0] == "convolutions: faster"
    unreached = rows + [hand_made(faster, seed, (0.1, 0.2, 0.3), 0.1) for seed in (0, 1, 2)]
    setups = {label: experiment.setups[label] for label in ("uniform", "uniform, lr 3e-4")} | {"faster": faster}
    assert line("paying", setups, unreached)[1:3] == ["never", "never"]


def test_a_median_of_what_is_not_always_reached():
    summary = module("summary")
    assert summary.spread([10, math.inf, 20], summary.number) == "20 (10 to never)"
    assert summary.spread([10, math.inf, math.inf], summary.number) == "never (10 to never)"
    assert summary.spread([10, 10], summary.number) == "10"
    assert summary.spread([10, math.inf], summary.number) == "never (10 to never)"


def test_pairs_of_settings_are_compared_one_by_one():
    experiment, rows = toy()
    pairs = {"uniform, a": experiment.setups["uniform"], "RHO-LOSS, a": experiment.setups["RHO-LOSS"]}
    experiment = replace(experiment, setups=pairs, kind="pairs")
    results = module("summary").results_of(experiment, rows)
    assert dict(cells(module("report").report(results), "a"))["times fewer"] == "2.0 (0.5 to 2.0)"


def test_seconds_are_compared_with_those_of_the_best_plain_training():
    experiment, rows = toy()
    results = module("summary").results_of(replace(experiment, kind="paying"), rows)
    found = [cell for _, cell in cells(module("report").report(results), "RHO-LOSS")]
    assert found[:6] == ["1.00", "40", "4.0", "9.0", "1.0", "0.4"]
    assert found[6:8] == ["2.0 (1.0 to 2.0)", "0.6 (0.4 to 0.6)"]
    assert found[8:13] == ["90.0", "0.0", "90.0", "90.0", "40"]
    assert [cell for _, cell in cells(module("report").report(results), "uniform")][1:4] == ["never", "never", "never"]
    assert "The best uniform: uniform, lr 3e-4." in module("report").report(results)


def test_a_first_run_pays_for_the_plan_and_a_further_one_does_not():
    experiment, rows = toy()
    results = module("summary").results_of(replace(experiment, kind="plans"), rows)
    text = module("report").report(results)
    found = [cell for _, cell in cells(text, "RHO-LOSS")]
    assert found == ["0.4", "1.0", "0.6 (0.4 to 0.6)", "2.0 (1.0 to 2.0)", "90.0"]
    assert "The best uniform: uniform, lr 3e-4." in text


def test_runs_that_share_a_plan_record_it_once(smoked, tmp_path, monkeypatch):
    planned, recorded = module("planned"), []
    record = planned.record_plan
    monkeypatch.setattr(planned, "record_plan", lambda *given, **options: recorded.append(1) or record(*given, **options))
    (experiment,) = small("plans-transfer")
    some = {label: setup for label, setup in experiment.setups.items() if "MLP 128" in label or "MLP 2" in label}
    runs = module("run").planned([replace(experiment, setups=some)], None)
    module("run").perform(runs, module("bench").Bench(smoked / "data"), tmp_path / "results.jsonl", None)
    rows = rows_of(tmp_path / "results.jsonl").values()
    made = [row for row in rows if row["setup"]["method"] == "plan"]
    assert len(recorded) == 1 < len(made)
    assert len({row["seconds_before"] for row in made}) == 1
    assert all(row["examples_scored"] > 0 for row in made)


def test_a_plan_without_its_order_has_the_same_selections_or_the_same_examples(smoked, tmp_path):
    (experiment,) = small("plans-choices")
    labels = ("uniform", "keep 0.1", "shuffled in time", "its examples, without order")
    runs = module("run").planned([replace(experiment, setups={label: experiment.setups[label] for label in labels})], None)
    module("run").perform(runs, module("bench").Bench(smoked / "data"), tmp_path / "results.jsonl", None)
    rows = {row["label"]: row for row in rows_of(tmp_path / "results.jsonl").values()}
    assert rows["shuffled in time"]["selected"] == rows["keep 0.1"]["selected"]
    assert rows["shuffled in time"]["repeated"] == rows["keep 0.1"]["repeated"]
    assert rows["shuffled in time"]["weights"] != rows["keep 0.1"]["weights"]


def test_what_is_not_there_by_then_is_nothing():
    row = {"evaluations": {"metric": [0.1, 0.5, 0.4], "seconds": [1.0, 2.0, 3.0]}}
    by = module("paying").metric_by
    assert [by(row, 2.5, 0.0), by(row, 2.5, 1.0), by(row, 9.0, 1.0), by(row, 1.5, 1.0)] == [0.5, 0.1, 0.4, 0.0]


def test_figures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    experiment, rows = toy()
    results = module("summary").results_of(replace(experiment, shown=("uniform", "RHO-LOSS")), rows)
    paths = module("figures").draw({"toy": results, "again": results}, tmp_path)
    assert {path.name for path in paths} == {"experiments_toy.png", "experiments_again.png", "experiments.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


COMMITTED = pytest.mark.skipif(
    not (ROOT / "examples" / "results" / "experiments.jsonl").exists(), reason="no results are committed yet"
)


@COMMITTED
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("experiments.md", {"overview", "noise-30", "plans-cnn", "plans-transfer", "cifar10n-pixels-worse"}),
        ("cost_measured.md", {"fast", "fast-clean"}),
        ("plans.md", {"plans"}),
    ],
)
def test_the_page_shows_the_tables_of_the_committed_results(name, shown):
    report, results = module("report"), module("results")
    page, rows = (PAGE.parent / name).read_text(), results.read(results.RESULTS)
    named = re.findall(r"<!-- report (\S+) -->", page)
    assert shown <= set(named)
    table = module("experiments").EXPERIMENTS
    found = {name: module("summary").results_of(each, rows) for name, each in table.items() if each.within is None}
    found = {name: results for name, results in found.items() if results is not None}
    assert report.updated(page, report.reports_of(found)) == page, (
        f"run examples/experiments/report.py --update docs/pages/{name}"
    )


@COMMITTED
def test_every_committed_row_is_of_an_experiment_and_says_how_to_repeat_it():
    results, setups = module("results"), module("setups")
    rows = results.read(results.RESULTS)
    assert rows
    asked = {
        setups.row_id(setup, seed)
        for experiment in module("experiments").EXPERIMENTS.values()
        for seed in experiment.seeds
        for setup in experiment.setups.values()
    }
    for row in rows:
        assert row["id"] in asked, row["label"]
        assert row["id"] == setups.row_id(setups.rebuilt(row["setup"]), row["seed"])
        assert row["command"].endswith(f"--row {row['id']}")
    assert results.RESULTS.stat().st_size < 2_000_000
