"""What tests share: data, scripts that run in this process, small weights, the plain form of a descriptor."""

import os

# before NumPy and torch start their threads; a chosen number also keeps commands from warning of a busy machine
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores
else:
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import json
import logging
import runpy
import subprocess
import sys
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NARROW = ROOT / "tests" / "narrow"
PATHS = [str(NARROW), str(ROOT), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, PATHS))  # for child processes
runpy.run_path(str(NARROW / "sitecustomize.py"))  # before torchvision is imported

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image as PILImage
from torch import nn

from reid.__main__ import main
from reid.config import Config
from reid.data.loader import decode
from reid.data.transforms import normalise
from reid.models import build_model
from reid.models.weights import load_checkpoint, read_weights, save_weights

collect_ignore = ["platforms", "narrow"]  # their files change the process that imports them


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items):
    """Tests that use the fixture `browser` or `shared` get the marker for it."""
    for item in items:
        for fixture, marker in (("browser", "browser"), ("shared", "real_data")):
            if fixture in getattr(item, "fixturenames", ()):  # doctests have none
                item.add_marker(marker)


def pytest_sessionfinish(session, exitstatus):
    """With RRID_NO_SKIPS set, as in CI, a skipped test makes the run fail."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []  # workers of -n have none
    if os.environ.get("RRID_NO_SKIPS") and skipped and exitstatus == 0:
        print("\nskipped, but RRID_NO_SKIPS is set:", *(report.nodeid for report in skipped), sep="\n  ")
        session.exitstatus = 1


@pytest.fixture(autouse=True)
def log_not_shown():
    """A command shows the log until its process ends. Here each test starts as the library does: with nothing shown."""
    logger = logging.getLogger("reid")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture()
def full_resnet18(monkeypatch):
    """torchvision's ResNet-18 instead of the narrow one of the tests."""
    monkeypatch.setattr(torchvision.models, "resnet18", torchvision.models.resnet.full_resnet18)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and lists: $RRID_SHARED, else ../shared. Tests that need it are skipped without it."""
    path = Path(os.environ.get("RRID_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"shared material is not at {path} ($RRID_SHARED)")
    return path


@pytest.fixture()
def script(monkeypatch):
    """script("train.py", "--h", 64, ...) runs one of the project's scripts in this process.

    Starting Python and importing torch takes seconds, so only a few tests start real processes.
    """

    def run(name: str, *arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        return run_here(name, *arguments)

    return run


def run_here(name: str, *arguments) -> subprocess.CompletedProcess:
    """Runs one of the project's scripts in this process and returns its exit code and output."""
    command = [str(a) for a in arguments]
    before, sys.argv = sys.argv, [str(ROOT / name), *command]
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
            code = 0
        except SystemExit as e:
            code = e.code
        except Exception:  # what a user would see as a traceback
            code = 1
            traceback.print_exc()
        finally:
            sys.argv = before
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def torchrun(processes: int, name: str, *arguments, **options) -> subprocess.Popen:
    """Starts one of the project's scripts in several processes, as torchrun does. One pipe has all their output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(ROOT / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def make_dataset(folder: Path, train_ids: int = 8, test_ids: int = 4, cameras: int = 2, shots: int = 2) -> Path:
    """Writes a small dataset in the JSON format. Identities differ in two colours, cameras in brightness."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    identities, query, gallery = [], [], []
    for pid in range(train_ids + test_ids):
        upper, lower = rng.integers(40, 200, 3), rng.integers(40, 200, 3)
        identities.append([[] for _ in range(cameras)])
        for camid in range(cameras):
            for shot in range(shots):
                pixels = np.concatenate([np.tile(upper, (32, 32, 1)), np.tile(lower, (32, 32, 1))])
                pixels = pixels + rng.normal(0, 20, pixels.shape) + 20 * camid
                name = f"{pid:08d}_{camid:04d}_{shot:08d}.jpg"
                PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / name)
                identities[pid][camid].append(name)
                if pid >= train_ids:
                    (query if shot == 0 else gallery).append([name, pid, camid])
    test = list(range(train_ids, train_ids + test_ids))
    meta = {"name": folder.name, "shot": "multiple", "num_cameras": cameras, "identities": identities}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    splits = [{"trainval": list(range(train_ids)), "query": test, "gallery": test}]
    (folder / "splits.json").write_text(json.dumps(splits), encoding="utf-8")
    (folder / "test.json").write_text(json.dumps([{"query": query, "gallery": gallery}]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A datasets folder with one dataset, `tiny`. Tests must not change it."""
    datasets = tmp_path_factory.mktemp("datasets")
    make_dataset(datasets / "tiny")
    return datasets


@pytest.fixture(scope="session")
def small_run(tiny) -> list[str]:
    """Flags of a training on `tiny` that takes a second."""
    return ["--dataset_type", "tiny", "--dataset_path", str(tiny), "--backbone", "resnet18", "--pretrained", "none",
            "--h", "64", "--w", "32", "--stripes", "2", "--batch_size", "8", "--steps_per_log", "1"]  # fmt: skip


@pytest.fixture()
def full_disk():
    """with full_disk(): no file can grow beyond 4 KiB. Python, HDF5 and torch all fail in the middle of a write.

    Windows has no such limit. There, tests that raise ENOSPC from torch.save and os.fsync still run.
    """
    resource = pytest.importorskip("resource", reason="only POSIX systems can limit the size of a file")

    @contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def make_weights(path, seed=0, **changes):
    """Saves weights of a small model. Its batch norms change their input, so that folding them matters."""
    torch.manual_seed(seed)
    config = Config(**{"backbone": "resnet18", "stripes": (2,), "h": 64, "w": 32, **changes})
    model = build_model(config, 5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.5)
    with torch.no_grad():
        model.train()(torch.randn(16, 3, config.h, config.w))
    save_weights(path, {"config": config.to_json(), "classes": 5, "state": model.state_dict()})
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return make_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


def state_of(path):
    return load_checkpoint(path)["state"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def plain(weights, paths, flip=True) -> np.ndarray:
    """(images, width) descriptors, computed by definition, one image at a time."""
    model, config = read_weights(weights)
    rows = []
    with torch.inference_mode():
        for path in paths:
            x = normalise(torch.from_numpy(decode(path, config.h, config.w).copy()).permute(2, 0, 1)[None])
            f = (model(x) + model(x.flip(3))) / 2 if flip else model(x)
            rows.append((f / f.norm()).flatten().numpy())
    return np.stack(rows)


def run_import(script, file, folder, *flags):
    return script("reid/__main__.py", "import", file, folder / "out.pth", *flags)


@pytest.fixture(scope="session")
def images(tiny):
    return sorted(str(p) for p in (tiny / "tiny" / "images").iterdir())


def run_reid(script, *arguments):
    """python -m reid in this process."""
    return script("reid/__main__.py", *arguments)


@pytest.fixture(scope="session")
def straight(small_run, tmp_path_factory):
    """A straight run of 12 steps, by the real script in a process of its own."""
    logs = tmp_path_factory.mktemp("logs")
    flags = [*small_run, "--max_steps", "12", "--exp_dir", str(logs), "--name", "straight"]
    done = subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return logs / "tiny" / "straight", done


@pytest.fixture(scope="module")
def browser():
    from report.browser import Browser  # tests/report/browser.py

    try:
        browser = Browser()
    except FileNotFoundError:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of two steps on a small dataset whose evaluation has a report."""
    root = tmp_path_factory.mktemp("trained")
    make_dataset(root / "data" / "small", cameras=3)
    flags = ["--dataset_type", "small", "--dataset_path", str(root / "data"), "--exp_dir", str(root / "logs")]
    size = ["--backbone", "resnet18", "--pretrained", "none", "--h", "64", "--w", "32", "--stripes", "2"]
    steps = ["--batch_size", "8", "--steps_per_log", "1", "--max_steps", "2", "--name", "first", "--seed", "3"]
    assert main(["train", *flags, *size, *steps]) == 0
    assert main(["evaluate", *flags, "--report"]) == 0
    return root / "logs" / "small" / "first"
