"""Windows and macOS: the commands without anything that only POSIX has, and child processes as Windows stops them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from reid.signals import child_options, stop_child

RUNNER = ROOT / "tests" / "platforms" / "without_posix.py"


def without_posix(folder: Path, commands: list[list[str]]) -> tuple[list[int], str]:
    """(exit codes, output) of commands that run one after another in one interpreter without POSIX."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-X", "warn_default_encoding", str(RUNNER), json.dumps(commands)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=900
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return json.loads(done.stdout.splitlines()[-1]), output


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are found in Linux' /proc")
def test_commands_without_posix(small_run, tiny, tmp_path):
    """Train, stop, resume, evaluate, extract, search, report and prepare; two processes started by spawn."""
    pytest.importorskip("matplotlib")
    shutil.copytree(tiny / "tiny" / "images", tmp_path / "images")
    run, weights, query = "logs/tiny/cut", "logs/tiny/cut/weights.pth", "images/00000009_0001_00000001.jpg"
    data = ["--dataset_type", "tiny", "--dataset_path", str(tiny)]
    commands = [
        ["stop after 3", "train", *small_run, "--name", "cut", "--max_steps", "6"],
        ["train", *small_run, "--name", "cut", "--max_steps", "6", "--resume"],
        ["evaluate", *data],
        ["evaluate", *data, "--query_expansion", "2"],
        ["extract", "--weights", weights, "--images", "images", "--out", "features.h5"],
        ["extract", "--weights", weights, "--images", "images", "--out", "features.npz"],
        ["evaluate", "--features", f"{run}/eval-tiny/features.h5"],
        ["gallery", "create", "gallery.h5", "--weights", weights, "--images", "images"],
        ["gallery", "search", "gallery.h5", "--weights", weights, "--images", query, "--top", "3"],
        ["gallery", "remove", "gallery.h5", "--names", query],
        ["report", run],
        ["prepare", "folder", "--source", "images", "--template", "{pid}_{cam}_{}.jpg", "--images", "link", "--name",
         "mine", "--dataset_path", "datasets"],
        ["two processes"],
    ]  # fmt: skip
    codes, output = without_posix(tmp_path, commands)
    assert codes == [130] + [0] * (len(commands) - 1), output
    assert "stopped by SIGINT after step 3 of 6" in output and "after step 3 of 6" in output
    assert (tmp_path / run / "weights.pth").is_file() and list((tmp_path / run).rglob("report.html"))
    linked = tmp_path / "datasets" / "mine" / "images"
    assert not any(path.is_symlink() for path in linked.iterdir())
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.lock"))


class Child:
    """A child process that records how it is stopped."""

    def __init__(self):
        self.calls = []

    def send_signal(self, number):
        self.calls.append(number)

    def terminate(self):
        self.calls.append("terminate")


def test_children_are_stopped_by_ctrl_break_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    assert child_options() == {"creationflags": 0x200}
    child = Child()
    stop_child(child)
    assert child.calls == [1]


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_children_are_terminated_elsewhere(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert child_options() == {"start_new_session": True}
    child = Child()
    stop_child(child)
    assert child.calls == ["terminate"]
