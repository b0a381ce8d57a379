"""An evaluation by two processes gives the features and the result of one."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import make_weights, run_here, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
LABELS = ("pids", "camids", "names", "subset")
COUNTS = ("n_query", "n_valid", "n_gallery")
MEASURES = ("map", "cmc", "minp")


def only(folder: Path, name: str, covered: bool) -> Path:
    """The one file of this name, of the evaluation with or without a covered band."""
    (path,) = (p for p in folder.rglob(name) if ("occlude" in p.parent.name) == covered)
    return path


@pytest.fixture(scope="module")
def evaluated(tiny, tmp_path_factory):
    """Folders of the same evaluation, by one process and by two.

    16 images in batches of 5: the last batch has one image, so one of two processes has none of it.
    """
    root = tmp_path_factory.mktemp("processes")
    folders = []
    for processes in (1, 2):
        folder = root / str(processes)
        folder.mkdir()
        flags = ["--weights", make_weights(folder / "w.pth"), "--exp_dir", folder, "--batch_size", 5]
        data = ["--dataset_type", "tiny", "--dataset_path", tiny, "--num_workers", 0, "--occlude", 6]
        if processes == 1:
            done = run_here("evaluate.py", *flags, *data)
            code, said = done.returncode, done.stdout + done.stderr
        else:
            process = torchrun(processes, "evaluate.py", *flags, *data)
            said, _ = process.communicate(timeout=300)
            code = process.returncode
        assert code == 0, said
        assert said.count("result in ") == 2, said  # only rank 0 prints and writes
        folders.append(folder)
    return folders


def test_features_are_equal(evaluated):
    one, two = (only(folder, "features.h5", covered=False) for folder in evaluated)
    with h5py.File(one) as a, h5py.File(two) as b:
        assert a["features"].shape == (16, 768)
        np.testing.assert_allclose(b["features"][:], a["features"][:], rtol=0, atol=1e-6)
        for name in LABELS:
            assert b[name][:].tolist() == a[name][:].tolist(), name
        assert b.attrs["record"] == a.attrs["record"]
    assert not [p for folder in evaluated for p in folder.rglob("*.partial")]


@pytest.mark.parametrize("covered", [False, True])
def test_results_are_equal(evaluated, covered):
    paths = (only(folder, "result.json", covered) for folder in evaluated)
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    assert [two[k] for k in COUNTS] == [one[k] for k in COUNTS] == [8, 8, 8]
    for measure in MEASURES:
        assert two[measure] == pytest.approx(one[measure], abs=1e-9), measure
