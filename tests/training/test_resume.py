"""A training that was stopped or whose files are damaged continues, with the same bits as an uninterrupted one."""

import errno
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from conftest import metrics, same, state_of
from filelock import FileLock

from reid.config import Config
from reid.errors import InputError, Interrupted
from reid.files import BLOCK, link_or_copy, locked, reserve
from reid.models import weights as weights_file
from reid.profiles import from_flags
from reid.runs import find_unfinished
from reid.training import checkpoint, trainer
from reid.training.step import TrainStep

pytestmark = pytest.mark.slow


def run(config, monkeypatch, stop_after=None):
    """train() in this process; SIGTERM to ourselves within step `stop_after`."""
    step = TrainStep.__call__

    def counted(self, *arguments):
        counted.steps += 1
        if counted.steps == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    counted.steps = 0
    monkeypatch.setattr(TrainStep, "__call__", counted)
    try:
        return trainer.train(config)
    finally:
        monkeypatch.setattr(TrainStep, "__call__", step)


@pytest.fixture()
def config(tiny, tmp_path):
    flags = {"dataset_type": ("tiny",), "dataset_path": str(tiny), "backbone": "resnet18", "pretrained": "none",
             "h": 64, "w": 32, "stripes": (2,), "batch_size": 8, "max_steps": 20, "exp_dir": str(tmp_path),
             "steps_per_log": 1}  # fmt: skip
    return from_flags(flags)


BF16 = {"precision": "bf16", "max_steps": 10}  # emulated on many CPUs, and then slow
DROPOUT = {"model": "pcb", "sampler": "random", "triplet_weight": 0.0}


CENTERS = {"model": "strong_baseline", "stripes": (), "neck": "bnneck", "optimizer": "adam", "center_weight": 5e-4}


@pytest.mark.parametrize("changes", [{"precision": "fp32"}, BF16, DROPOUT, CENTERS])
def test_resume_equals_the_straight_run_from_any_step(config, tmp_path, monkeypatch, changes):
    """Stopped within the first epoch (of 16 steps; of 4 with the random sampler) and within another: the same bits,
    the same log. Dropout is drawn anew for each step, the centers are in the checkpoint."""
    flags = {**vars(config), **changes}
    straight = run(Config(**{**flags, "name": "straight"}), monkeypatch)
    cut = {**flags, "name": "cut"}
    for stop in (3, flags["max_steps"] * 3 // 4):
        with pytest.raises(Interrupted, match="--resume"):
            run(Config(**cut), monkeypatch, stop)
        cut["resume"] = "newest"
    weights = run(Config(**cut), monkeypatch)
    assert same(state_of(weights), state_of(straight))
    a, b = ([m for m in metrics(w.parent) if "loss" in m] for w in (straight, weights))
    assert a == b


def test_a_compiled_backbone_trains_the_same_model(config, tmp_path, monkeypatch):
    """Validated, stopped and resumed; the weights have the usual names. PyTorch's own kernels stand for the compiled
    ones, so the weights are equal."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    flags = {**vars(config), "max_steps": 4, "train_set": "train", "num_val": 4}
    straight = run(Config(**{**flags, "name": "straight"}), monkeypatch)
    cut = {**flags, "name": "compiled", "compile": True}
    with pytest.raises(Interrupted, match="--resume"):
        run(Config(**cut), monkeypatch, 2)
    weights = run(Config(**{**cut, "resume": "newest"}), monkeypatch)
    found, expected = state_of(weights), state_of(straight)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[k], expected[k], rtol=1e-4, atol=1e-5) for k in found)


def test_compiling_needs_a_compiler(config, tmp_path, monkeypatch):
    def failing(function):
        raise RuntimeError("No working C++ compiler found\nmore lines")

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(InputError, match=r"--compile: .* C\+\+ compiler found\); install the compiler that it needs"):
        trainer.train(Config(**{**vars(config), "compile": True}))
    assert not (tmp_path / "tiny").exists() or not list((tmp_path / "tiny").iterdir())


def test_damaged_checkpoint_falls_back_to_the_one_before(config, tmp_path, monkeypatch, caplog):
    straight = run(Config(**{**vars(config), "name": "straight"}), monkeypatch)
    with pytest.raises(Interrupted):
        run(Config(**{**vars(config), "name": "cut"}), monkeypatch, 18)
    folder = tmp_path / "tiny" / "cut"
    assert weights_file.load_checkpoint(folder / "previous.pth")["step"] == 16
    (folder / "checkpoint.pth").write_bytes(b"PK damaged")
    (folder / ".checkpoint.pth.77.tmp").write_bytes(b"left by a killed process")
    caplog.set_level("INFO", "reid")
    weights = run(Config(**{**vars(config), "name": "cut", "resume": "newest"}), monkeypatch)
    said = caplog.text
    assert "WARNING" in said and "previous.pth" in said and "after step 16 of 20" in said
    assert same(state_of(weights), state_of(straight))
    assert not list(folder.glob(".*.tmp"))


def test_full_disk_loses_nothing(config, tmp_path, monkeypatch):
    """The second save (at step 20) fails half way: the checkpoint of step 16 is whole and the run can go on."""
    write, calls = torch.save, []

    def full(content, target):
        calls.append(target)
        write(content, target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left"):
        trainer.train(config)
    monkeypatch.setattr(torch, "save", write)
    folder = next((tmp_path / "tiny").iterdir())
    assert checkpoint.load_latest(folder, print)["step"] == 16
    weights = trainer.train(Config(**{**vars(config), "resume": str(folder)}))
    assert weights.exists() and not list(folder.glob(".*.tmp"))


def test_a_run_at_work_is_not_resumed_beside_itself(config, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        run(config, monkeypatch, 4)
    (folder,) = (tmp_path / "tiny").iterdir()
    before = (folder / "metrics.jsonl").read_bytes()
    with locked(folder / "checkpoint.pth"), pytest.raises(InputError, match="another process is using"):
        trainer.train(Config(**{**vars(config), "resume": str(folder)}))
    assert (folder / "metrics.jsonl").read_bytes() == before
    trainer.train(Config(**{**vars(config), "resume": str(folder)}))
    assert (folder / "weights.pth").is_file() and not list(folder.glob("*.lock"))


def test_resuming_beside_damaged_files(config, tmp_path, monkeypatch):
    """Lines and lists that are no use are dropped; another file in the checkpoint's place is refused."""
    with pytest.raises(Interrupted):
        run(config, monkeypatch, 4)
    (folder,) = (tmp_path / "tiny").iterdir()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "metrics.jsonl").write_text(
        "\n".join([lines[0], "{damaged", '{"step": "x"}', *lines[2:]]) + "\n", encoding="utf-8"
    )
    (folder / "versions.json").write_text("{}", encoding="utf-8")
    content = (folder / "checkpoint.pth").read_bytes()
    weights_file.save_checkpoint(folder / "checkpoint.pth", {"config": config.to_json(), "classes": 8, "state": {}})
    with pytest.raises(InputError, match="is not the checkpoint of a training: it has no best"):
        trainer.train(Config(**{**vars(config), "resume": str(folder)}))
    (folder / "checkpoint.pth").write_bytes(content)
    trainer.train(Config(**{**vars(config), "resume": str(folder)}))
    assert [m["step"] for m in metrics(folder)][:3] == [1, 3, 4]
    assert len(json.loads((folder / "versions.json").read_text(encoding="utf-8"))) == 1


def test_lock_excludes_other_holders(tmp_path, caplog):
    """Also if one holder removes the lock file while another one opens it."""
    counter = tmp_path / "counter"
    counter.write_text("0", encoding="utf-8")

    def count(_) -> None:
        for _ in range(300):
            with locked(counter):
                counter.write_text(str(int(counter.read_text(encoding="utf-8")) + 1), encoding="utf-8")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert counter.read_text(encoding="utf-8") == "1200" and [p.name for p in tmp_path.iterdir()] == ["counter"]
    assert "waiting for another process" in caplog.text


def test_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with locked(tmp_path / "a", waits=False):
        pass
    assert "has no file locks" in caplog.text and not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_has_no_lock(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"), locked(tmp_path / "file" / "a"):
        raise AssertionError("the body must not run")


@pytest.mark.parametrize("refused", [(), ("symlink",), ("symlink", "link")])
def test_link_or_copy(tmp_path, monkeypatch, refused):
    """A symbolic link, else a hard link, else a copy; an existing target is never replaced."""

    def refuse(*_):
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    for name in refused:
        monkeypatch.setattr(os, name, refuse)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    link_or_copy(source, target)
    assert target.read_bytes() == b"content"
    assert target.is_symlink() == (not refused)
    assert target.samefile(source) == (len(refused) < 2)
    with pytest.raises(FileExistsError):
        link_or_copy(source, target)
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "missing", tmp_path / "other")


def test_reserved_space_without_fallocate(tmp_path, monkeypatch):
    """The content stays, the rest is zero and really on the disk; a full disk is an OSError."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path, size = tmp_path / "rows", 3 * BLOCK + 5
    path.write_bytes(b"head")
    reserve(path, size)
    assert path.read_bytes() == b"head" + bytes(size - 4)
    if hasattr(os.stat_result, "st_blocks"):
        assert path.stat().st_blocks * 512 >= size


def test_changes_at_resume_can_be_allowed(config, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        run(config, monkeypatch, 4)
    (folder,) = (tmp_path / "tiny").iterdir()
    other = {**vars(config), "resume": str(folder), "lr": 0.002}
    with pytest.raises(InputError, match=r"lr 0\.01 -> 0\.002.*--allow_changes"):
        trainer.train(Config(**other))
    trainer.train(Config(**{**other, "allow_changes": True}))
    rates = {m["step"]: m["lr"] for m in metrics(folder) if "lr" in m}
    assert rates[4] == pytest.approx(0.01) and rates[5] == pytest.approx(0.002)


def test_other_resolved_precision_is_not_resumed_silently(config, tmp_path, monkeypatch):
    """The flag stays 'auto', but it now means another precision."""
    with pytest.raises(Interrupted):
        run(config, monkeypatch, 4)
    (folder,) = (tmp_path / "tiny").iterdir()
    assert weights_file.load_checkpoint(folder / "checkpoint.pth")["precision"] == "fp32"
    resolve = {"auto": "bf16"}.get
    monkeypatch.setattr("reid.training.step.resolve_precision", lambda precision, _: resolve(precision, precision))
    with pytest.raises(InputError, match=r"differs: precision fp32 -> bf16; .*--allow_changes"):
        trainer.train(Config(**{**vars(config), "resume": str(folder)}))
    allowed = Config(**{**vars(config), "resume": str(folder), "allow_changes": True})
    with pytest.raises(Interrupted):
        run(allowed, monkeypatch, 1)
    assert weights_file.load_checkpoint(folder / "checkpoint.pth")["precision"] == "bf16"


def test_run_is_found_by_its_configuration(config, tmp_path, monkeypatch):
    """--resume without a folder: the folder's name does not matter, the stored configuration does."""
    with pytest.raises(Interrupted):
        run(config, monkeypatch, 4)
    (folder,) = (tmp_path / "tiny").iterdir()
    folder.rename(tmp_path / "tiny" / "renamed")
    (tmp_path / "tiny" / "damaged").mkdir()
    (tmp_path / "tiny" / "damaged" / "config.json").write_text("{", encoding="utf-8")
    asked = Config(**{**vars(config), "resume": "newest"})
    assert find_unfinished(asked).name == "renamed"
    with pytest.raises(InputError, match="no unfinished run named other; unfinished runs there: h-64"):
        find_unfinished(Config(**{**vars(asked), "name": "other"}))


def test_metrics_after_the_checkpoint_are_dropped(config, tmp_path, monkeypatch):
    """A run killed after its last checkpoint has logged steps that resuming will do again."""
    with pytest.raises(Interrupted):
        run(config, monkeypatch, 4)
    (folder,) = (tmp_path / "tiny").iterdir()
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps({"step": 5, "loss": 1e9}) + "\n")
    trainer.train(Config(**{**vars(config), "resume": str(folder)}))
    steps = [m["step"] for m in metrics(folder) if "loss" in m]
    assert steps == list(range(1, 21))
    assert all(m.get("loss", 0) < 1e8 for m in metrics(folder))
