"""The model file in the repository is the published one and recognises people."""

import numpy as np
from conftest import ROOT

import reid
from reid.config import Config
from reid.data.demo import draw
from reid.files import sha256
from reid.models.tensors import load_tensors


def test_the_shipped_model():
    """It is the file whose digest is published, small, and knows drawn people again although it never saw any."""
    folder = ROOT / "pretrained"
    path = folder / "rrid_mobilenet_v2_market1501.pth"
    assert path.stat().st_size < 30e6 and sha256(path) in (folder / "README.md").read_text(encoding="utf-8")
    content = load_tensors(path)
    paths = ("exp_dir", "name", "resume", "pretrained_weights_dir")
    run = Config().to_json()["run"]
    assert content["classes"] == 0
    assert all(content["config"]["run"][name] == run[name] for name in paths)  # no path of a machine
    shots = [np.asarray(draw(pid, 0, shot)) for shot in (0, 1) for pid in range(12)]
    features = reid.Extractor(path)(shots)
    assert features.shape == (24, 1792) and reid.load_model(path).stripes == (6,)
    nearest = (features[:12] @ features[12:].T).argmax(1)
    assert (nearest == np.arange(12)).mean() > 0.7
