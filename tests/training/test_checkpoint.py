"""Checkpoints survive kills and full disks, and damage is noticed."""

import random
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, same

from reid.errors import InputError
from reid.files import locked
from reid.models import weights as weights_file
from reid.training import checkpoint

SAVING = """
import sys, torch
from pathlib import Path
from reid.models import weights
folder = Path(sys.argv[1])
for step in range(1, 100000):
    content = {"step": step, "state": {"w": torch.full((400_000,), float(step))}}
    weights.save_checkpoint(folder / "checkpoint.pth", content, folder / "previous.pth")
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_the_last_good_file_loads(tmp_path):
    """SIGKILL at random moments of a loop of saves: a whole checkpoint, the last or the one before, is there."""
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        said = [line for line in process.communicate()[0].split() if line]
        content = checkpoint.load_latest(tmp_path, print)
        assert (content["state"]["w"] == content["step"]).all()
        assert content["step"] >= int(said[-1] if said else 3)


def test_any_flipped_byte_is_noticed(tmp_path):
    """A damaged file is refused, or (a flip in the padding of the container) its content is whole."""
    torch.manual_seed(0)
    content = {"config": {"a": 1}, "state": {"w": torch.randn(300), "n": torch.arange(3)}, "step": 5}
    path = tmp_path / "checkpoint.pth"
    weights_file.save_checkpoint(path, content)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            got = weights_file.load_checkpoint(path)
        except InputError:
            refused += 1
            continue
        assert got["step"] == 5 and same(got["state"], content["state"])
    assert refused > 50
    for part in (0.01, 0.2, 0.5, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(InputError):
            weights_file.load_checkpoint(path)


def test_killed_process_releases_its_lock(tmp_path):
    code = "import sys, time; from pathlib import Path; from reid.files import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match="another process is using"), locked(tmp_path / "a", waits=False):
            raise AssertionError("the body must not run")
        process.kill()
        process.wait()
    with locked(tmp_path / "a", waits=False):
        assert (tmp_path / "a.lock").exists()
    assert not list(tmp_path.iterdir())
