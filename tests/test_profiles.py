"""Named defaults: what each recipe and profile says, and that the training does it."""

import pytest
import torch

from reid.commands.flags import to_flags
from reid.config import Config
from reid.errors import CheckFailed, InputError
from reid.losses import center_loss, identity_loss, objective
from reid.models import build_model
from reid.models.tensors import load_tensors
from reid.profiles import PROFILES, from_flags, profile, run_name
from reid.training.step import TrainStep
from reid.variants import MODELS


def test_original_is_the_published_code():
    c = profile("original")
    assert (c.sampler, c.erasing, c.train_set, c.classes) == ("anchor", "published", "train", 751)
    assert (c.ghost_batch, c.base_lr_from, c.contrast, c.eval_every) == (32, 40, "mean_of_rest", 0)
    assert c.changes(profile("paper")).keys() == {
        "sampler", "erasing", "train_set", "classes", "ghost_batch", "base_lr_from", "eval_every"
    }  # fmt: skip


def test_best_is_the_paper_with_what_runs_showed():
    assert profile("best").changes(profile("paper")) == {"stripes": (6,), "schedule": "cosine"}
    assert run_name(profile("best")) == "best"


def test_paddle_presets():
    """PaddleClas' three configurations: 88.45, 94.29 and 94.50 Rank-1 as published."""
    softmax, triplet, center = profile("softmax"), profile("softmax_triplet"), profile("paper", "strong_baseline")
    assert {c.model for c in (softmax, triplet, center)} == {"strong_baseline"}
    for c in (softmax, triplet, center):
        assert (c.h, c.w, c.batch_size, c.batch_sample, c.epochs, c.visits) == (256, 128, 64, 4, 120, 1)
        assert (c.optimizer, c.lr, c.base_lr, c.weight_decay, c.margin) == ("adam", 3.5e-4, 3.5e-4, 5e-4, 0.3)
        assert (c.triplet_weight, c.ce_weight, c.crop_padding) == (1, 1, 10)
    assert [c.last_stride for c in (softmax, triplet, center)] == [2, 1, 1]
    assert [c.neck for c in (softmax, triplet, center)] == ["none", "bnneck", "bnneck"]
    assert [c.smoothing for c in (softmax, triplet, center)] == [0, 0.1, 0.1]
    assert [c.erasing_probability for c in (softmax, triplet, center)] == [0, 0.5, 0.5]
    assert [c.center_weight for c in (softmax, triplet, center)] == [0, 0, 5e-4]
    assert [c.decay_schedule for c in (softmax, triplet, center)] == [(40, 70), (30, 60), (30, 60)]
    assert [c.warmup_epochs for c in (softmax, triplet, center)] == [0, 10, 10]


def test_demo_of_every_method():
    rates = {m: profile("demo", m).lr for m in MODELS}
    assert rates == {"rrid": 0.02, "baseline": 0.02, "strong_baseline": 1e-3, "sbs": 1e-3, "pcb": 0.02, "mgn": 0.02}
    assert {(c.h, c.w, c.max_steps, c.backbone) for c in (profile("demo", m) for m in MODELS)} == {
        (192, 64, 200, "mobilenet_v2")
    }


def test_typed_epochs_overrule_the_steps_of_a_profile():
    assert profile("demo").max_steps == 200
    config = from_flags({"profile": "demo", "epochs": 3})
    assert (config.epochs, config.max_steps) == (3, 0)
    assert from_flags({"profile": "demo", "epochs": 3, "max_steps": 5}).max_steps == 5


def test_names_of_runs():
    assert run_name(profile("demo", "pcb")) == "pcb"
    assert run_name(profile("softmax_triplet")) == "softmax_triplet"
    assert run_name(from_flags({"model": "mgn", "seed": 1})) == "mgn_seed-1"
    assert run_name(profile("original")) == "original"


@pytest.mark.parametrize("name, model", [("demo", "mgn"), ("original", "rrid"), ("paper", "strong_baseline")])
def test_flags_repeat_a_configuration(name, model):
    base = profile(name, model)
    config = from_flags({"seed": 3, "dataset_type": ("a", "b"), "compile": True}, base)
    assert to_flags(config, base) == ["--dataset_type", "a", "b", "--compile", "--seed", "3"]
    assert to_flags(base, base) == []


@pytest.mark.parametrize("given, words", [
    ({"model": "pbc"}, "did you mean pcb"),
    ({"profile": "softmax", "model": "pcb"}, "--profile softmax is a recipe of --model strong_baseline, not of pcb"),
    ({"profile": "original", "model": "pcb"}, "--profile original is a recipe of --model rrid, not of pcb"),
    ({"model": "pcb", "relation": "none"}, "--relation belongs to --model rrid, not to pcb"),
    ({"model": "baseline", "stripes": (6,)}, "--stripes 6: --model baseline takes no stripe count"),
    ({"model": "pcb", "stripes": (6, 4)}, "--stripes 6 4: --model pcb takes 1"),
    ({"neck": "bnneck"}, "--neck belongs to --model strong_baseline"),
    ({"last_stride": 2}, "--last_stride belongs to --model baseline or strong_baseline, not to rrid"),
    ({"warmup_steps": 1, "warmup_epochs": 1}, "not both"),
    ({"sampler": "anchor", "visits": 1}, "--visits cannot be used with --sampler anchor"),
    ({"triplet_weight": 0.0, "ce_weight": 0.0}, "training needs a loss"),
    ({"decay_schedule": (60, 40)}, "--decay_schedule 60 40 is not in increasing order"),
    ({"momentum": 2.0}, "--momentum 2.0 is more than 1"),
])  # fmt: skip
def test_contradictions(given, words):
    with pytest.raises(InputError, match=words):
        from_flags(given)


def test_smoothing_equals_its_definition():
    logits, labels = torch.randn(4, 2, 5, dtype=torch.double), torch.tensor([0, 1, 4, 4])
    target = torch.full((4, 5), 0.1 / 5, dtype=torch.double)
    target[torch.arange(4), labels] += 0.9
    plain = [-(target * logits[:, i].log_softmax(1)).sum(1).mean() for i in range(2)]
    torch.testing.assert_close(identity_loss(logits, labels, 0.1), torch.stack(plain))


def test_objective_weights():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert objective(one, two) == 5
    assert objective(one, two, 0.0, 1.0) == 2


def toy(**changes) -> TrainStep:
    torch.manual_seed(0)
    config = Config(**{
        "model": "strong_baseline", "stripes": (), "backbone": "resnet18", "neck": "bnneck", "optimizer": "adam",
        "batch_size": 4, "batch_sample": 2, "center_weight": 5e-4, "precision": "fp32", **changes,
    })  # fmt: skip
    return TrainStep(build_model(config, 3), config, torch.device("cpu"))


def test_centers_move_as_their_own_sgd():
    """Rate 0.5 on the unweighted loss, beside the model's optimiser: PaddleClas' center loss."""
    step, labels = toy(), torch.tensor([0, 0, 2, 2])
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        features = step.model.base(images).mean((2, 3))[:, None]  # before the weights move
    centers = torch.zeros(3, 1, step.model.base.channels, requires_grad=True)
    loss = sum((features[i] - centers[k]).square().sum() for i, k in enumerate(labels.tolist())) / 4
    loss.backward()
    terms = step(images, labels, (1e-3, 1e-3))
    torch.testing.assert_close(terms["center"], loss.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(center_loss(features, labels, centers), loss)
    torch.testing.assert_close(step.centers, -0.5 * centers.grad, rtol=1e-3, atol=1e-4)
    assert not step.centers[1].any() and step.centers[0].any()
    total = terms["triplet"] + 2 * terms["cross_entropy"] + 5e-4 * terms["center"]
    torch.testing.assert_close(terms["loss"], total)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_optimisers_equal_torchs_and_stop_at_what_is_not_finite(optimizer):
    step, plain = toy(optimizer=optimizer), toy(optimizer=optimizer)
    for s in (step, plain):
        s.model.double()  # Adam divides by gradients near 0: in float32 their rounding would decide
    groups = [p.parameters() for p in (plain.model.base, plain.model.classifier)]
    weights = [p for g in groups for p in g] + [plain.model.neck.weight]
    if optimizer == "adam":
        other = torch.optim.Adam(weights, 1e-3, weight_decay=5e-4)
    else:
        other = torch.optim.SGD(weights, 1e-3, 0.9, weight_decay=5e-4, nesterov=optimizer == "nesterov")
    plain.optimizer.step = other.step
    labels = torch.tensor([0, 0, 2, 2])
    for i in range(2):
        images = torch.randn(4, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(i))
        for s in (step, plain):
            s(images, labels, (1e-3, 1e-3))
    for a, b in zip(step.model.parameters(), plain.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    before = {k: v.clone() for k, v in step.model.named_parameters()}
    centers = step.centers.clone()
    step(torch.full((4, 3, 32, 32), torch.nan, dtype=torch.double), labels, (1e-3, 1e-3))
    assert all(torch.equal(v, before[k]) for k, v in step.model.named_parameters())
    assert torch.equal(step.centers, centers)
    with pytest.raises(CheckFailed, match="center"):
        step.check_finite(3)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_builds_a_model_for_its_images(name):
    config = profile(name)
    assert config.profile == name
    model = build_model(config, 10)
    with torch.no_grad():
        features, logits = model.train()(torch.randn(2, 3, config.h, config.w))
    assert len(features) == len(logits) == 2 and logits.shape[2] == 10
    assert features.isfinite().all() and logits.isfinite().all()


@pytest.mark.slow
def test_original_trains_on_some_identities_with_all_classifiers(script, small_run, tmp_path):
    """As published: 751 outputs whoever is in training, held-out people who decide nothing, the last weights."""
    flags = ["--profile", "original", *small_run, "--ghost_batch", 4, "--num_val", 2, "--max_steps", 2]
    done = script("train.py", *flags, "--exp_dir", tmp_path, "--name", "o")
    assert done.returncode == 0, done.stderr
    assert "of 6 identities" in done.stdout and "held-out mAP" not in done.stdout
    content = load_tensors(tmp_path / "tiny/o/weights.pth")
    assert content["classes"] == 751 and content["state"]["classifiers.weight"].shape == (9, 751, 256)
    assert not (tmp_path / "tiny/o/best.pth").exists()
    scored = [*small_run[:4], "--weights", tmp_path / "tiny/o/weights.pth", "--batch_size", 6]
    assert script("evaluate.py", *scored).returncode == 0  # what concerned the training alone is not asked again
    done = script("train.py", *small_run, "--classes", 5, "--exp_dir", tmp_path)
    assert done.returncode == 2 and "--classes 5 is less than the 8 training identities" in done.stderr
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == ["o"]
