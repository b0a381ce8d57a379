"""Networks of timm as backbones: a convolutional one, a transformer, and torchvision's ResNet under its timm name."""

import numpy as np
import pytest
import torch
from conftest import make_weights

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.inference.extractor import Extractor
from reid.models import build_model
from reid.models.backbone import build_backbone, imagenet_file
from reid.models.pretrained import read_start, start_from
from reid.models.timm_map import map_shape
from reid.profiles import RECIPES, from_flags, run_name
from reid.runs import read_config
from reid.training import trainer
from reid.variants import MODELS

timm = pytest.importorskip("timm", reason="needs timm")
CONVOLUTIONAL, TRANSFORMER = "timm:test_resnet", "timm:test_vit"


@torch.no_grad()
@pytest.mark.parametrize("last_stride", [1, 2])
def test_resnet_of_timm_is_torchvisions(last_stride, full_resnet18):
    """Equal with the same tensors, so the last stage has the stride and no dilation."""
    ours, theirs = (build_backbone(name, last_stride).eval() for name in ("resnet18", "timm:resnet18"))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 96, 32)
    torch.testing.assert_close(theirs(images), ours(images))
    assert theirs.channels == ours.channels == 512


@torch.no_grad()
def test_map_of_a_transformer_is_its_tokens():
    """Row by row, after the final norm and without the class token, for an image of another size than timm's."""
    base = build_backbone(TRANSFORMER).eval()
    images = torch.randn(2, 3, 64, 32)
    tokens = base.forward_features(images)[:, base.num_prefix_tokens :]
    torch.testing.assert_close(base(images), tokens.transpose(1, 2).reshape(2, base.channels, 4, 2))


@pytest.mark.parametrize("backbone", [CONVOLUTIONAL, "timm:test_efficientnet", TRANSFORMER])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_gradients_everywhere(model, backbone):
    """No parameter is left over, since several processes could not train it."""
    fields = {**RECIPES[model], "model": model, "backbone": backbone}
    if backbone == TRANSFORMER:
        fields["last_stride"] = 1
        if model == "mgn":
            with pytest.raises(InputError, match=r"last map at stride 16, and timm cannot change it to 32"):
                build_model(Config(**fields), 3)
            return
    built = build_model(Config(**fields), 3).train()
    features, logits = built(torch.randn(2, 3, 192, 64))
    (features.square().sum() + logits.sum()).backward()
    assert not [k for k, p in built.named_parameters() if p.requires_grad and p.grad is None]


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_cut_networks_are_the_whole(name):
    base = build_backbone(f"timm:{name}", 2).eval()
    images = torch.randn(1, 3, 64, 64)
    trunk, rest = base.cut()
    assert trunk(images).shape[2] == 4 and torch.equal(rest(trunk(images)), base(images))
    assert not trunk.state_dict().keys() & rest.state_dict().keys()
    assert trunk.state_dict().keys() | rest.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("name, size, words", [
    ("timm:resnte18", (64, 64), r"--backbone timm:resnte18 is not a network of timm \(did you mean"),
    ("timm:vit_small_patch14_dinov2", (64, 64), "last map at stride 14, and timm cannot change it to 16"),
    ("timm:swin_tiny_patch4_window7_224", (64, 64), "last map at stride 32"),
    (TRANSFORMER, (100, 64), r"images of 100x64: Input height \(100\) should be divisible by patch size \(16\)"),
    ("timm:cait_xxs24_224", (64, 64), r"images of 64x64: .*\(224\)"),
    ("timm:vgg11", (64, 64), "last map at stride 32, and timm cannot change it to 16"),
    ("timm:hrnet_w18_small", (64, 64), "last map at stride 32, and timm cannot change it to 16"),
    ("timm:resnet18.none", (64, 64), "--backbone timm:resnet18.none: Invalid pretrained tag"),
    ("timm:", (64, 64), "--backbone timm: is unknown"),
])  # fmt: skip
def test_what_a_network_cannot_do(name, size, words):
    with pytest.raises(InputError, match=words), torch.device("meta"):
        map_shape(build_backbone(name), size)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r'needs timm; pip install -e ".\[timm\]"'):
        build_backbone(CONVOLUTIONAL)


@pytest.mark.parametrize("suffix", [".pth", ".a1_in1k.safetensors"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_weights_in_the_folder(tmp_path, monkeypatch, name, suffix):
    """A whole state dict of timm, with its classifier."""
    monkeypatch.setattr("reid.models.pretrained.imagenet_file", lambda b: imagenet_file(b, tmp_path))
    state = timm.create_model(name).state_dict()
    path = tmp_path / f"timm-{name}{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(state, path)
    (tmp_path / f"timm-{name}2.pth").write_bytes(b"of another network")
    model = build_model(Config(backbone=f"timm:{name}"), 3)
    said = start_from(model, read_start("auto", f"timm:{name}"), f"timm:{name}", "")
    own = model.base.state_dict()
    assert own and all(torch.equal(value, state[key]) for key, value in own.items()), said


def test_download(tmp_path, monkeypatch):
    """timm's own download, kept in the folder; a hub that is not reached is an error with the expected name."""
    create = timm.create_model

    def unreachable(name, pretrained=False, **arguments):
        if pretrained:
            raise ConnectionError("no route to the hub")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(MissingInput, match=r"timm-test_resnet\.pth .*no route to the hub.*--pretrained none"):
        imagenet_file(CONVOLUTIONAL, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **arguments: create(name, **arguments))
    path = imagenet_file(CONVOLUTIONAL, tmp_path)
    assert path.name == "timm-test_resnet.pth" and imagenet_file(CONVOLUTIONAL, tmp_path) == path
    assert read_start(str(path), CONVOLUTIONAL).kind == CONVOLUTIONAL


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [CONVOLUTIONAL, TRANSFORMER])
def test_train_and_extract(tiny, tmp_path, backbone):
    """The name is in the weights file and, without its colon, in that of the run."""
    flags = {"dataset_type": ("tiny",), "dataset_path": str(tiny), "backbone": backbone, "pretrained": "none",
             "h": 64, "w": 32, "stripes": (2,), "batch_size": 8, "max_steps": 2, "exp_dir": str(tmp_path)}  # fmt: skip
    config = from_flags(flags)
    assert "backbone-timm-test" in run_name(config)
    weights = trainer.train(config)
    assert read_config(weights.parent).backbone == backbone
    images = [np.random.default_rng(i).integers(0, 256, (80, 40, 3), dtype=np.uint8) for i in range(2)]
    assert Extractor(weights)(images).shape == (2, 3 * 256)
    with pytest.raises(InputError, match=r"cannot be cut|does not take images"):
        trainer.train(from_flags({**flags, "h": 72}))


@pytest.mark.slow
def test_onnx(tmp_path, monkeypatch):
    """Of a transformer, whose position embedding is resampled to the size of the images."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = make_weights(tmp_path / "w.pth", backbone=TRANSFORMER)
    images = [np.random.default_rng(i).integers(0, 256, (64, 32, 3), dtype=np.uint8) for i in range(3)]
    plain, onnx = (Extractor(weights, engine=engine)(images) for engine in ("plain", "onnx"))
    np.testing.assert_allclose(onnx, plain, atol=1e-4)
