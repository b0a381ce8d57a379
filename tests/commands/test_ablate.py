"""The ablation through its command, and its table."""

import csv
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import ROOT, run_here

from reid.commands.ablate import parse_vary
from reid.commands.cells import Cell, find_run, is_scored, plan, threads_of, work_place
from reid.commands.children import Children
from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.evaluation.record import USUAL, Record, Scoring
from reid.files import locked
from reid.models.backbone import build_backbone
from reid.profiles import from_flags, run_name
from reid.report.table import COLUMNS, covered, markdown, read_runs, summary
from reid.signals import child_options, stop_child


def ablate(*argv, cwd=ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "reid", "ablate", *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_values_to_vary():
    assert parse_vary("stripes=2,4,6,6 4,6 4 2") == ("stripes", [(2,), (4,), (6,), (6, 4), (6, 4, 2)])
    assert parse_vary("lr=0.01,1e-3") == ("lr", [0.01, 0.001])
    assert parse_vary("compile=true,false") == ("compile", [True, False])


@pytest.mark.parametrize("text, words", [
    ("stripe=6", "did you mean stripes?"),
    ("stripes", "with a training flag, for"),
    ("pooling=max,,", "expected FIELD=A,B"),
    ("stripes=six", "stripes takes values like"),
    ("exp_dir=a,b", "expected FIELD=A,B with a training flag"),
    ("rerank=true", "training flag"),
])  # fmt: skip
def test_values_that_cannot_vary(text, words):
    with pytest.raises(InputError, match=words):
        parse_vary(text)


def test_one_factor_at_a_time_and_grid():
    factors = [("relation", ["none", "one_vs_rest"]), ("pooling", ["max", "gcp", "avg"])]
    cells, impossible = plan({}, factors, grid=False, seeds=1)
    assert [c.name for c in cells] == ["paper", "relation-none", "pooling-max", "pooling-avg"]
    assert not impossible
    cells, _ = plan({}, factors, grid=True, seeds=1)
    assert len(cells) == 6
    cells, _ = plan({"seed": 5}, factors, grid=True, seeds=3)
    assert len(cells) == 18 and {c.config.seed for c in cells} == {5, 6, 7}


def test_cells_of_one_name_have_their_own_places():
    cells, _ = plan({}, [("pretrained", ["a/x.pth", "b/x.pth"])], False, 2)
    assert len({c.name for c in cells}) < len(cells) == len({work_place(c) for c in cells}) == 6


def test_methods_bring_their_recipes():
    cells, _ = plan({"profile": "demo"}, [("model", ["pcb", "strong_baseline"])], False, 1)
    assert [c.name for c in cells] == ["demo", "pcb", "strong_baseline"]
    assert cells[1].config.stripes == (6,) and cells[2].config.optimizer == "adam"


def test_impossible_cells_are_listed():
    factors = [("stripes", [(6,), (5,)]), ("relation", ["nnone"])]
    cells, impossible = plan({}, factors, grid=False, seeds=1)
    assert [c.name for c in cells] == ["paper", "stripes-6"]
    assert [i.name for i in impossible] == ["stripes 5", "relation nnone"]
    assert "cannot be cut into 5 stripes" in impossible[0].reason and "did you mean none" in impossible[1].reason
    with pytest.raises(InputError, match="stripes is given twice"):
        plan({}, [factors[0], factors[0]], False, 1)


@pytest.fixture(scope="module")
def ablated(small_run, tmp_path_factory):
    """Two cells of one step, one impossible; and what a second call of the same command did."""
    logs = tmp_path_factory.mktemp("ablation")
    flags = [*small_run, "--max_steps", 1, "--exp_dir", logs, "--vary", "relation=none,nine", "--seeds", 2]

    def run(children, argv):
        done = run_here("reid/__main__.py", *argv)
        return done.returncode, done.stderr

    with pytest.MonkeyPatch.context() as m:  # other tests start real processes
        m.setattr("reid.commands.children.Children.run", run)
        command = ["reid/__main__.py", "ablate", *flags]
        return logs, run_here(*command, "--csv", logs / "t.csv"), run_here(*command)


@pytest.mark.slow
def test_every_cell_is_trained_scored_and_in_the_table(ablated):
    logs, first, _ = ablated
    assert first.returncode == 1, first.stderr  # one value is impossible
    assert "impossible  relation nine: --relation nine is unknown" in first.stdout
    runs = sorted(p.parent for p in logs.glob("tiny/*/weights.pth"))
    assert len(runs) == 4  # full model and relation none, two seeds each
    assert all((run / "eval-tiny" / "result.json").is_file() for run in runs)
    with open(logs / "t.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert {"mAP", "mAP std", "parameters", "images seen", "published mAP/Rank-1"} <= set(rows[0])
    assert sorted(r["changed"] for r in rows) == ["paper", "relation none"]
    for row in rows:
        scores = [json.loads((run / "eval-tiny/result.json").read_text(encoding="utf-8"))["map"] for run in runs
                  if (json.loads((run / "config.json").read_text(encoding="utf-8"))["model"]["relation"] == "none")
                  == (row["changed"] == "relation none")]  # fmt: skip
        assert float(row["mAP"]) == pytest.approx(sum(scores) / 2)
        assert float(row["mAP std"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
        assert row["seeds"] == "2" and row["images seen"] == "8" and row["width"] == "768"
    assert "±" in first.stdout


@pytest.mark.slow
def test_finished_cells_are_skipped(ablated):
    logs, first, second = ablated
    assert second.returncode == 1 and second.stdout.count("finished    ") == 4
    assert len(list(logs.glob("tiny/*"))) == 4
    table = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert table == [line for line in second.stdout.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("change", [
    {"split": 1}, {"h": 96}, {"covered": 2}, {"scoring": {"rerank": True}}, {"dataset": "other"},
], ids=str)  # fmt: skip
def test_another_evaluation_does_not_count_as_scored(change, ablated, tmp_path):
    """Whatever its folder is called: the record says what a result is."""
    folder = tmp_path / "run"
    shutil.copytree(next(p.parent for p in ablated[0].glob("tiny/*/weights.pth")), folder)
    config = Config.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")), "x")
    assert is_scored(folder, config)
    (folder / "eval-tiny").rename(folder / "eval-of_any_name")
    assert is_scored(folder, config)
    path = folder / "eval-of_any_name" / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    scoring = result["record"]["scoring"] | change.get("scoring", {})
    result["record"] |= change | {"scoring": scoring}
    path.write_text(json.dumps(result), encoding="utf-8")
    assert not is_scored(folder, config)


@pytest.mark.slow
def test_table_of_runs(ablated, script):
    logs, _, _ = ablated
    rows, left_out = read_runs([logs])
    assert len(rows) == 4 and not left_out
    base = build_backbone("resnet18")
    first, related, second = 256 * (base.channels + 3), 256 * (base.channels + 3), 256 * (512 + 3)
    assert {row.parameters for row in rows} == {sum(p.numel() for p in base.parameters()) + n for n in (
        3 * (first + related + second) + 9 * 257 * 8,  # E_p, E_r, R: 3 slots; 9 classifiers
        3 * first + related + second + 5 * 257 * 8,  # relation none: only the whole is related
    )}  # fmt: skip
    text = markdown(summary(rows), COLUMNS)
    assert text.splitlines()[0].startswith("| model | changed | test |") and "published" not in text
    folder = rows[0].folder
    (folder / "weights.pth").rename(folder / "w")
    try:
        rows, left_out = read_runs([logs])
        assert len(rows) == 3 and "unfinished" in left_out[0]
    finally:
        (folder / "w").rename(folder / "weights.pth")
    with pytest.raises(MissingInput, match="has no run"):
        read_runs([logs / "nothing"])


@pytest.mark.slow
def test_covered_bands(ablated, script, tmp_path, monkeypatch):
    """One line a configuration, a column a band, over seeds; bands nobody scored stay empty."""
    rows = read_runs([ablated[0]])[0]
    score = {0: 0.6, 1: 0.5, 4: 0.2, **dict.fromkeys((2, 3, 5, 6), 0.3)}
    scored = [
        replace(row, record=replace(row.record, covered=band), scores=(value + 0.02 * row.config.seed, 0.1, 0.1))
        for row in rows
        for band, value in score.items()
        if row.config.relation != "none" or band in (0, 4)
    ]
    full, none = covered(scored)
    line = full if full["1"] else none
    assert line["changed"] == "paper"
    assert line["whole"] == pytest.approx((0.61, 0.02 / 2**0.5)) and line["4"] == pytest.approx((0.21, 0.02 / 2**0.5))
    assert line["mean loss"][0] == pytest.approx(0.6 - 1.9 / 6) and line["seeds"] == 2
    other = none if line is full else full
    assert other["1"] is None and other["mean loss"] is None and other["4"][0] == pytest.approx(0.21)
    assert not covered(rows)
    done = script("reid/__main__.py", "table", ablated[0], "--figure", tmp_path / "x.png")
    assert done.returncode == 2 and "--occlude" in done.stderr
    monkeypatch.setattr("reid.commands.table.read_runs", lambda paths: (scored, []))
    done = script("reid/__main__.py", "table", ablated[0], "--figure", tmp_path / "x.png")
    assert done.returncode == 0 and (tmp_path / "x.png").stat().st_size > 10_000
    assert "occlude" not in done.stdout.split("mAP with one sixth")[0]


@pytest.mark.slow
def test_a_run_counts_once(ablated, script, tmp_path):
    """Named twice, or copied, it is not a second seed; a damaged run is reported, the others are read."""
    logs = ablated[0]
    twin, damaged = tmp_path / "logs" / "twin", tmp_path / "logs" / "damaged"
    run = sorted(p.parent for p in logs.glob("tiny/*/weights.pth"))[0]
    shutil.copytree(run, twin)
    shutil.copytree(run, damaged)
    path = damaged / "eval-tiny" / "result.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"map": "a"}), encoding="utf-8")
    older = damaged / "eval-older" / "result.json"
    older.parent.mkdir()
    older.write_text('{"map": 0.5, "cmc": [1], "minp": 0.5, "weights": "w", "dataset": "d"}', encoding="utf-8")
    rows, left_out = read_runs([logs, run, twin, damaged])
    assert len(rows) == 4 and len(left_out) == 3
    assert "same configuration and seed" in left_out[0]
    assert left_out[1] == f"{older} was made by an older version, which kept no record; evaluate again"
    assert "ValueError" in left_out[2]
    for name in ("x.txt", "folder.csv", "file/x.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        (tmp_path / "file").write_text("", encoding="utf-8")
        done = script("reid/__main__.py", "table", logs, "--csv", tmp_path / name)
        assert done.returncode == 2 and name in done.stderr and "Traceback" not in done.stderr
    assert script("reid/__main__.py", "table", logs).returncode == 0


def test_a_test_is_what_its_record_says(ablated, tmp_path):
    """Folders may have any name; a label names what differs from the training's settings and between rows."""
    run = tmp_path / "run"
    shutil.copytree(sorted(p.parent for p in ablated[0].glob("tiny/*/weights.pth"))[0], run)
    source = run / "eval-tiny" / "result.json"
    content = json.loads(source.read_text(encoding="utf-8"))

    def write(name, scoring=USUAL, **changes):
        record = replace(Record.from_json(content["record"], source), scoring=scoring, **changes)
        path = run / name / "result.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content | {"record": record.to_json()}), encoding="utf-8")

    write("eval-tiny_rerank", split=3)
    write("eval-x_y", dataset="x_y", h=128, scoring=Scoring(rerank=True, cmc="cuhk03"))
    rows = read_runs([run])[0]
    assert sorted(line["test"] for line in summary(rows)) == ["tiny", "tiny split-3", "x_y 128x32 cmc-cuhk03 rerank"]
    assert {row.width for row in rows} == {768}
    write("eval-1", content="other images")
    write("eval-2", dataset="x", precision="bf16")
    tests = sorted(line["test"] for line in summary(read_runs([run])[0]))
    assert tests[0].startswith("tiny precision-fp32 ") and tests[1].startswith("tiny precision-fp32 ")
    assert tests[0] != tests[1] and "x precision-bf16" in tests


def test_a_cell_that_another_process_runs_is_left_alone(ablated, small_run):
    flags = [*small_run, "--max_steps", 1, "--exp_dir", ablated[0], "--vary", "relation=none", "--seeds", 2]
    run = next(p.parent for p in ablated[0].glob("tiny/*/weights.pth"))
    config = Config.from_json(json.loads((run / "config.json").read_text(encoding="utf-8")), "config.json")
    with locked(work_place(Cell(run_name(config), config)), waits=False):
        done = run_here("reid/__main__.py", "ablate", *flags)
    assert done.returncode == 1 and done.stdout.count("another process is using") == 1, done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_published_numbers_in_the_table(ablated):
    """In the rows of the method itself on the published data, not for variants or other data."""
    row = read_runs([ablated[0]])[0][0]

    def published(config, test):
        record = replace(row.record, dataset=test, h=config.h, w=config.w)
        return summary([replace(row, config=config, record=record)])[0]

    assert published(Config(), "market1501")["published mAP/Rank-1"].startswith("88.9/95.2")
    assert "AAAI 2020" in published(Config(), "market1501")["published setting"]
    assert published(Config(relation="none"), "market1501")["published mAP/Rank-1"] == ""
    assert published(Config(), "tiny")["published mAP/Rank-1"] == ""


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_others(small_run, tmp_path):
    """Cells are found and run from a folder without the project's files, as with an installed package."""
    flags = [*small_run, "--max_steps", 2, "--exp_dir", "logs", "--vary", "lr=1e30", "--jobs", 2]
    done = ablate(*flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "lr-1e+30: exit code 1: " in done.stdout and "not finite" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stdout.count("| rrid |") == 1 and "unfinished" in done.stdout
    assert len(list(tmp_path.glob("logs/tiny/*/eval-tiny/result.json"))) == 1


@pytest.mark.slow
def test_stopped_cells_are_continued(small_run, tmp_path):
    flags = [*small_run, "--max_steps", 100, "--exp_dir", tmp_path, "--vary", "relation=one_vs_rest"]
    command = [sys.executable, "-m", "reid", "ablate", *map(str, flags)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **child_options()
    ) as child:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("tiny/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        stop_child(child)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "run the same command again" in err
    (folder,) = tmp_path.glob("tiny/*")
    assert (folder / "checkpoint.pth").is_file() and not (folder / "weights.pth").is_file()
    done = ablate(*flags)
    assert done.returncode == 0, done.stderr
    assert "to continue" in done.stdout and "resuming" in (folder / "log.txt").read_text(encoding="utf-8")
    config = Config.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")), "x")
    assert find_run(config) == folder and find_run(from_flags({"lr": 0.5}, config)) is None


@pytest.mark.parametrize("flags, words", [
    (["--vary", "stripes=6", "--seeds", "0"], "--seeds 0 is too small"),
    (["--vary", "h=64", "--profile", "nope"], "error: --profile nope is unknown"),
    (["--vary", "h=64", "--csv", "docs"], "--csv docs: expected a file name"),
    (["--vary", "stripes=6", "--name", "x"], "--name is for a single run"),
    ([], "--vary"),
    (["--vary", "stripes=6", "--strips", "4"], "did you mean --stripes"),
])  # fmt: skip
def test_bad_usage(flags, words, script):
    done = script("reid/__main__.py", "ablate", *flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_jobs_share_the_cores(monkeypatch):
    """Torch processes with a thread per core each would starve each other."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [threads_of(jobs) for jobs in (1, 2, 3, 20)] == [0, 4, 2, 1]
    assert Children(quiet=True, threads=4).environment["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_of(2) == 0
