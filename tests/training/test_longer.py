"""A finished run is trained longer: the same bits as a longer run, the schedule, what is kept, what is refused."""

import json
import shutil

import pytest
from conftest import metrics, same, state_of

from reid.errors import Interrupted
from reid.profiles import from_flags
from reid.runs import is_finished, read_config
from reid.training import trainer
from reid.training.step import TrainStep

pytestmark = pytest.mark.slow


@pytest.fixture()
def finished(straight, tmp_path):
    """A copy of the run of 12 steps."""
    return shutil.copytree(straight[0], tmp_path / "logs" / "tiny" / "straight")


def stopped_at(monkeypatch, config, last):
    """Trains and is stopped by a signal in step `last` of this call."""
    step = TrainStep.__call__
    calls = []
    stop = trainer.Trainer.must_stop

    def counted(self, *arguments):
        calls.append(1)
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "__call__", counted)
        patched.setattr(trainer.Trainer, "must_stop", lambda self, *a: len(calls) == last or stop(self, *a))
        with pytest.raises(Interrupted):
            trainer.train(config)


def test_a_longer_run_in_two_parts_has_the_same_bits(script, small_run, tiny, tmp_path, monkeypatch):
    """With a constant rate, where the schedules of both lengths agree. The second part is stopped, too."""
    flags = [*small_run, "--decay_schedule", 100, "--exp_dir", tmp_path]
    for name, steps in (("whole", 20), ("parts", 12)):
        done = script("train.py", *flags, "--name", name, "--max_steps", steps)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "tiny" / "parts"
    done = script("evaluate.py", "--exp_dir", tmp_path, "--dataset_path", tiny)
    assert done.returncode == 0 and f"result in {folder / 'eval-tiny'}" in done.stdout, done.stderr
    before = (folder / "weights.pth").read_bytes()
    longer = {"resume": str(folder), "max_steps": 20, "dataset_path": str(tiny)}
    stopped_at(monkeypatch, from_flags(longer, read_config(folder)), 3)
    assert (folder / "weights.pth").read_bytes() == before and not is_finished(folder)
    done = script("train.py", "--resume", folder, "--dataset_path", tiny)
    assert done.returncode == 0 and "after step 15 of 20" in done.stdout, done.stderr
    assert is_finished(folder) and read_config(folder).continued_from == (12,)
    assert same(state_of(folder / "weights.pth"), state_of(folder.with_name("whole") / "weights.pth"))
    assert [m["step"] for m in metrics(folder) if "loss" in m] == list(range(1, 21))
    assert (folder / "until-step-12" / "eval-tiny" / "result.json").is_file()
    assert not (folder / "eval-tiny").exists()


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        # drops at 39/80 and 59/80 of 24 steps: after 12 (11.7) and 18 (17.7) of them
        (["--max_steps", 24], [1e-3] * 6 + [1e-4] * 6),
        # the same fractions of the 12 added steps: after 6 (5.85) and 9 (8.85)
        (["--max_steps", 24, "--restart_schedule"], [1e-2] * 6 + [1e-3] * 3 + [1e-4] * 3),
        # 2 epochs of 16 steps; drops at the start of epochs 40 and 60, which do not come
        (["--epochs", 2], [1e-2] * 20),
    ],
)
def test_schedule_of_the_added_steps(script, finished, tiny, flags, rates):
    done = script("train.py", "--resume", finished, "--dataset_path", tiny, *flags)
    assert done.returncode == 0, done.stderr
    added = [m["lr"] for m in metrics(finished) if "lr" in m and m["step"] > 12]
    assert added == pytest.approx(rates)
    words = "run again over the added steps" if "--restart_schedule" in flags else "that of a run of"
    assert words in done.stdout and f"--lr was 0.0001 at the end and is {rates[0]:g} now" in done.stdout
    assert len(json.loads((finished / "versions.json").read_text(encoding="utf-8"))) == 2
    if "--epochs" in flags:  # and longer again, with another restart
        more = ["--max_steps", 33, "--restart_schedule"]
        done = script("train.py", "--resume", finished, "--dataset_path", tiny, *more)
        assert done.returncode == 0, done.stderr
        config = read_config(finished)
        assert (config.continued_from, config.schedule_from) == ((12, 32), 32)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "is finished; evaluate it, or give a greater --epochs or --max_steps"),
        (["--max_steps", 12], "is finished; evaluate it"),
        (["--max_steps", 11], "finished after 12 steps, and 11 steps are not more"),
        (["--restart_schedule"], "--restart_schedule goes with --resume RUN and a greater --epochs"),
        (["--max_steps", 20, "--lr", 1], "the configuration differs: lr 0.01 -> 1.0; "),
    ],
)
def test_what_is_refused_changes_nothing(script, finished, tiny, flags, words):
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.suffix in (".json", ".pth", ".jsonl")}
    done = script("train.py", "--resume", finished, "--dataset_path", tiny, *flags)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert all((finished / name).read_bytes() == content for name, content in before.items())
    assert is_finished(finished)


def test_a_finished_run_without_its_checkpoint(script, finished, tiny):
    for name in ("checkpoint.pth", "previous.pth"):
        (finished / name).unlink(missing_ok=True)
    done = script("train.py", "--resume", finished, "--dataset_path", tiny, "--max_steps", 20)
    assert done.returncode == 2 and f"--pretrained {finished / 'weights.pth'}" in done.stderr
