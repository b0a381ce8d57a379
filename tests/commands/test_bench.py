"""Every benchmark at a tiny size: its rows, and that forms which must agree are compared."""

import mmap
import shutil

import numpy as np
import pytest

from reid.__main__ import main
from reid.bench import data, extract, jobs, measure, plain, ranking, rerank
from reid.bench.measure import Measured, check_close, side_by_side, table
from reid.commands.bench import SUBJECTS
from reid.errors import CheckFailed
from reid.inference import engines, int8
from reid.inference.onnx_file import export_onnx

FEATURES = ["--queries", "20", "--gallery", "200", "--identities", "10", "--width", "8"]
STEP = ["--h", "192", "--w", "16", "--backbone", "resnet18"]
SIZES = {
    "ranking": FEATURES,
    "rerank": FEATURES,
    "gallery": ["--size", "200", "--width", "8", "--queries", "5"],
    "serve": ["--h", "192", "--w", "16", "--backbone", "mobilenet_v2", "--requests", "32", "--size", "50"],
    "data": ["--h", "64", "--w", "32", "--images", "10", "--batch_size", "4", "--num_workers", "2"],
    "extract": [*STEP, "--batch_size", "2"],
    "train": [*STEP, "--batch_size", "5"],
}
ROWS = {
    "ranking": ["published", "ours, NumPy", "features to result, in tiles"],
    "rerank": ["dense", "sparse"],
    "gallery": ["search, 1 query", "search, 5 queries", "add one entry"],
    "serve": [
        "bare Extractor, one by one",
        "bare Extractor, in batches",
        *(f"search, {n} clients" for n in (1, 8, 32)),
    ],
    "data": ["one image at a time", "decoded, 0 threads", "decoded, 2 threads", "from the cache"],
    "extract": [
        *("plain, fp32, channels first", "torch, fp32", "onnx, fp32", "onnx, int8", "openvino, fp32", "openvino, int8"),
        *("bare ONNX Runtime, fp32", "bare OpenVINO, fp32"),
    ],
    "train": [
        *("plain, fp32", "RRID, fp32", "bare resnet18, fp32"),
        *("RRID, bf16", "bare resnet18, bf16", "plain heads", "batched heads"),
        *("data (augment, normalise)", "backbone", "heads and classifiers", "losses", "optimiser"),
    ],
}


def bench(subject: str, *flags: str) -> int:
    return main(["bench", subject, *SIZES[subject], "--repeat", "1", *flags])


def test_every_benchmark_is_here():
    assert SUBJECTS.keys() == SIZES.keys() == ROWS.keys()


@pytest.fixture()
def short(monkeypatch):
    """Few single images, and one float32 file for float32 and int8; PyTorch's export takes seconds."""
    path = []

    def export(where, *rest):
        if path:
            shutil.copy(path[0], where)
        else:
            export_onnx(where, *rest)
            path.append(shutil.copy(where, f"{where}.copy"))

    monkeypatch.setattr(extract, "RUNS", 3)
    for module in (engines, int8):
        monkeypatch.setattr(module, "export_onnx", export)


@pytest.mark.parametrize(
    "subject", [pytest.param(s, marks=pytest.mark.slow) if s in ("train", "extract") else s for s in SIZES]
)
def test_rows(subject, capsys, short):
    assert bench(subject) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in ROWS[subject]:
        found = [line[30:].split()[:2] for line in lines if line[:30].strip() == row]
        assert any(float(seconds) >= 0 and (speed == "-" or speed.endswith("x")) for seconds, speed in found)


@pytest.mark.parametrize("subject, plain_form", [("ranking", "published"), ("rerank", "dense")])
def test_alone_leaves_the_plain_form_out(subject, plain_form, capsys):
    assert bench(subject, "--alone") == 0
    assert plain_form not in capsys.readouterr().out


def off_by_one(function):
    def wrong(*arguments):
        result = function(*arguments)
        return (result[0] + 1, *result[1:]) if isinstance(result, tuple) else result + 1

    return wrong


@pytest.mark.parametrize("subject, module, name", [
    ("ranking", ranking, "measures"),
    ("rerank", rerank, "sparse"),
    ("data", data, "usual_batch"),
])  # fmt: skip
def test_a_wrong_result_fails_the_benchmark(subject, module, name, monkeypatch, capsys):
    monkeypatch.setattr(module, name, off_by_one(getattr(module, name)))
    assert bench(subject) == 1
    assert " differ by " in capsys.readouterr().err


def test_wrong_answers_of_a_gallery_fail_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr("reid.bench.gallery.name_of", lambda number: f"{number % 3}.jpg")
    assert bench("gallery") == 2  # names that are not unique
    capsys.readouterr()
    names = iter(range(10_000))
    monkeypatch.setattr("reid.bench.gallery.name_of", lambda number: f"{next(names)}.jpg")
    assert bench("gallery") == 1
    assert "does not find itself" in capsys.readouterr().err


def test_another_engine_fails_the_benchmark(monkeypatch, capsys, short):
    def untrained(model, size, precision):
        model.base.conv1.weight.data *= -1
        return model.eval()

    monkeypatch.setattr("reid.inference.engines.prepare", untrained)
    monkeypatch.setattr(extract, "PACKAGES", {})
    assert bench("extract") == 1
    assert "'torch, fp32' and 'plain, fp32, channels first' differ by" in capsys.readouterr().err


@pytest.mark.slow
def test_trainings_at_the_same_time(capsys, monkeypatch):
    """Each row has its images per second and their share of one training's."""
    monkeypatch.setattr(jobs, "TURNS", 1)
    assert bench("train", "--jobs", "2") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(lines) == 3 and lines[0][-1] == "1.00x"
    one, *others = (float(line[-2]) for line in lines)
    assert all(abs(float(line[-1][:-1]) - rate / one) < 0.05 for line, rate in zip(lines[1:], others))


@pytest.mark.slow
def test_another_plain_loss_fails_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr("reid.bench.train.plain_loss", off_by_one(off_by_one(plain.plain_loss)))
    monkeypatch.setattr("reid.bench.train.PRECISIONS", ("fp32",))
    assert bench("train") == 1
    assert "'RRID, fp32' and 'plain, fp32' differ by" in capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    (["ranking", "--queries", "0"], "--queries 0 is too small; the minimum is 1"),
    (["train", "--batch_size", "4"], "two identities need at least 5 images"),
    (["nothing"], "invalid choice: 'nothing'"),
])  # fmt: skip
def test_bad_usage(flags, words, capsys):
    try:
        code = main(["bench", *flags])
    except SystemExit as e:
        code = e.code
    assert code == 2 and words in capsys.readouterr().err


def test_forms_take_turns_and_the_median_counts(monkeypatch):
    order, clock = [], iter([0, 1, 10, 20, 30, 33, 40, 50, 60, 62, 70, 80])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    rows = side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert (rows["a"].seconds, rows["b"].seconds) == (2, 10)


def test_memory_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(measure, "restart_peak", lambda: None)
    rows = side_by_side({"a": lambda: 1})
    text = table("title", rows, "a")
    assert rows["a"].peak is None and "MiB" not in text
    assert text.splitlines()[-1] == "peak memory: not available on this system"


def test_peak_memory():
    """Of new pages of the system, as the C library may keep and reuse what earlier tests freed."""
    size = 1 << 27

    def large() -> None:
        with mmap.mmap(-1, size) as pages:
            pages[::4096] = bytes(size // 4096)

    rows = side_by_side({"large": large, "small": lambda: None})
    if rows["large"].peak is None:
        pytest.skip("peak memory is not available on this system")
    assert rows["large"].peak > 0.9 * size > 0.1 * size > rows["small"].peak


def test_results_that_differ():
    rows = {name: Measured(0, None, x) for name, x in [("a", 2.0), ("b", 2.01), ("c", np.nan)]}
    assert check_close(rows, ["a", "b"], 0.01) == pytest.approx(0.01)
    for other in "bc":
        with pytest.raises(CheckFailed, match=f"'{other}' and 'a' differ"):
            check_close(rows, ["a", other], 0.001)
