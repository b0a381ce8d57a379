"""1, 2 and 4 processes are one training: in float64 losses and weights agree after five steps."""

import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, metrics, state_of

from reid.config import Config
from reid.errors import InputError
from reid.models.batch_norm import GhostBatchNorm, replace_forward
from reid.models.rrid import RRID
from reid.processes import World, connected, gather_rows, launch, world
from reid.training.step import TrainStep

BATCH, CLASSES = 8, 4


def five_steps(target) -> int:
    """One process's part of five steps of a tiny model; the first writes losses and weights to `target`."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with connected(device) as here:
        torch.manual_seed(0)
        model = RRID(CLASSES, (2,), "resnet18", dim=8).double()
        config = Config(backbone="resnet18", stripes=(2,), batch_size=BATCH, precision="fp32", margin=0.3)
        step = TrainStep(model, config, device, here)
        labels = torch.arange(CLASSES).repeat_interleave(2)
        losses = []
        for i in range(5):
            images = torch.randn(BATCH, 3, 64, 32, dtype=torch.double, generator=torch.Generator().manual_seed(i))
            mine = here.share(BATCH)
            terms = step(images[mine], labels[mine], (config.base_lr, config.lr))
            rows = gather_rows(torch.stack([terms["triplet"], terms["cross_entropy"]])[None])
            losses.append(rows.mean(0))
        step.check_finite(5)
        if here.first:
            torch.save({"losses": torch.stack(losses), "state": model.state_dict()}, target)
    return 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "1.pt"
    assert launch(five_steps, path, 1) == 0
    return torch.load(path, weights_only=True)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_number_of_processes_changes_nothing(alone, tmp_path, processes):
    assert launch(five_steps, tmp_path / "n.pt", processes) == 0
    several = torch.load(tmp_path / "n.pt", weights_only=True)
    torch.testing.assert_close(several["losses"], alone["losses"], rtol=1e-9, atol=1e-9)
    assert several["losses"][4].sum() < several["losses"][0].sum()
    assert several["state"].keys() == alone["state"].keys()
    for name, tensor in alone["state"].items():
        torch.testing.assert_close(several["state"][name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def torchrun(processes, *arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
               str(ROOT / "train.py"), *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


@pytest.mark.distributed
@pytest.mark.slow
def test_torchrun_trains_the_same(script, small_run, tmp_path):
    """The real script: in float32 the first loss agrees to 1e-5 (later, hard mining may choose another image)."""
    flags = [*small_run, "--max_steps", 3, "--exp_dir", tmp_path, "--eval_every", 1, "--train_set", "train",
             "--num_val", 3, "--h", 128, "--w", 64, "--batch_size", 8, "--batch_sample", 2]  # fmt: skip
    done = script("train.py", *flags, "--name", "one")
    assert done.returncode == 0, done.stderr
    process = torchrun(2, *flags, "--name", "two")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    one, two = (metrics(tmp_path / "tiny" / name) for name in ("one", "two"))
    assert [m["step"] for m in one] == [m["step"] for m in two]
    for name in ("loss", "triplet", "cross_entropy"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-5)
    assert "val_map" in two[3] and said.count("weights in") == 1
    a, b = (state_of(tmp_path / "tiny" / name / "weights.pth") for name in ("one", "two"))
    assert a.keys() == b.keys()


@pytest.mark.distributed
@pytest.mark.slow
def test_torchrun_stops_and_resumes(small_run, script, tmp_path):
    """A signal to one of two processes stops both after the same step; the run can be resumed by any number."""
    flags = [*small_run, "--max_steps", 100, "--exp_dir", tmp_path, "--name", "cut", "--print_freq", 1]
    process = torchrun(2, *flags)
    path = tmp_path / "tiny" / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (path.exists() and path.read_text(encoding="utf-8")):
        time.sleep(0.02)
    psutil.Process(process.pid).children()[-1].terminate()
    said, _ = process.communicate(timeout=120)
    assert "continue with: python train.py --resume" in said
    done = script("train.py", "--resume", path.parent, "--dataset_path", small_run[3])
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in metrics(path.parent) if "loss" in m] == list(range(1, 101))


def fail_in_one(_) -> int:
    return 3 if world().rank == 1 else 0


@pytest.mark.distributed
@pytest.mark.slow
def test_launch_reports_the_failure_of_one():
    assert launch(fail_in_one, None, 2) == 3


def test_batches_that_cannot_be_split():
    with pytest.raises(InputError, match=r"64 images cannot be split over 3 processes; use --batch_size 66"):
        World(0, 3).share(64)
    assert [World(r, 2).share(8) for r in (0, 1)] == [slice(0, 4), slice(4, 8)]


def test_ghost_batch_norm_is_two_gpus_of_dataparallel():
    """Each half is normalised by its own statistics; the running ones follow the first half."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4) * torch.arange(1.0, 9.0).view(8, 1, 1, 1)
    ghost = replace_forward(torch.nn.BatchNorm2d(3), GhostBatchNorm, ghost=4).train()
    first, second = torch.nn.BatchNorm2d(3).train(), torch.nn.BatchNorm2d(3).train()
    torch.testing.assert_close(ghost(x), torch.cat([first(x[:4]), second(x[4:])]))
    torch.testing.assert_close(ghost.running_var, first.running_var)
    torch.testing.assert_close(ghost.eval()(x), first.eval()(x))
    assert int(ghost.num_batches_tracked) == 1


@pytest.mark.slow
def test_ghost_batch_changes_the_training(script, small_run, tmp_path):
    for name, extra in (("whole", []), ("ghost", ["--ghost_batch", 4])):
        done = script("train.py", *small_run, "--max_steps", 2, "--exp_dir", tmp_path, "--name", name, *extra)
        assert done.returncode == 0, done.stderr
    losses = [[m["loss"] for m in metrics(tmp_path / "tiny" / name) if "loss" in m] for name in ("whole", "ghost")]
    assert not np.allclose(losses[0], losses[1], rtol=1e-4)
