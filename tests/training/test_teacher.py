"""A student learns from a teacher: the losses in plain form, which logits count, several processes, resuming."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_weights, metrics, same, state_of
from torch.nn import functional as F

from reid.config import Config
from reid.data.prepare import open_dataset
from reid.errors import InputError, Interrupted
from reid.losses import imitation_loss, similarity_loss
from reid.models.rrid import RRID
from reid.models.weights import load_checkpoint, read_weights, save_weights
from reid.processes import connected, gather_rows, launch
from reid.profiles import from_flags, run_name
from reid.training import trainer
from reid.training.step import TrainStep
from reid.training.teacher import Teacher, read_teacher

CPU = torch.device("cpu")


def plain_divergence(ours, theirs, temperature):
    """Of two vectors: the sum of p log(p / q)."""
    p, q = (torch.exp(v / temperature) / torch.exp(v / temperature).sum() for v in (theirs, ours))
    return sum(a * torch.log(a / b) for a, b in zip(p, q))


def plain_imitation(logits, taught):
    losses = []
    for classifier in range(logits.shape[1]):
        rows = [
            plain_divergence(logits[i, classifier], sum(taught[i]) / taught.shape[1], 4.0) for i in range(len(logits))
        ]
        losses.append(16 * sum(rows) / len(rows))
    return torch.stack(losses)


def plain_similarity(features, taught):
    def cosines(f, i):
        vectors = [v.flatten() / v.flatten().norm() for v in f]
        return torch.stack([vectors[i] @ vectors[j] for j in range(len(f)) if j != i])

    rows = [plain_divergence(cosines(features, i), cosines(taught, i), 0.1) for i in range(len(features))]
    return sum(rows) / len(rows)


@pytest.mark.parametrize(
    ("loss", "plain", "shapes"),
    [
        (imitation_loss, plain_imitation, [(5, 3, 4), (5, 2, 4)]),
        (similarity_loss, plain_similarity, [(5, 3, 4), (5, 2, 7)]),
    ],
)
def test_losses_and_their_gradients(loss, plain, shapes):
    torch.manual_seed(0)
    ours, theirs = (torch.randn(shape, dtype=torch.double) for shape in shapes)
    ours.requires_grad_()
    got, expected = loss(ours, theirs), plain(ours, theirs)
    torch.testing.assert_close(got, expected)
    (gradient,) = torch.autograd.grad(got.sum(), ours)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), ours)[0])
    assert gradient.abs().max() > 1e-3


def test_a_student_equal_to_its_teacher_has_no_loss():
    f, z = torch.randn(4, 2, 3), torch.randn(4, 1, 5)
    assert similarity_loss(f, 7 * f) < 1e-6
    assert imitation_loss(z.expand(-1, 3, -1), z + 2).abs().max() < 1e-5


@pytest.fixture(scope="module")
def content(tiny, tmp_path_factory):
    """The content of a teacher's weights file, with classes for all 8 identities."""
    content = load_checkpoint(make_weights(tmp_path_factory.mktemp("teacher") / "t.pth", stripes=(4,), h=128))
    classifiers = {"classifiers.weight": torch.randn(15, 8, 256), "classifiers.bias": torch.randn(15, 8)}
    fingerprint = open_dataset("tiny", str(tiny), 0).fingerprint
    return {**content, "classes": 8, "state": content["state"] | classifiers, "fingerprint": fingerprint}


@pytest.fixture()
def taught(tiny, tmp_path, content):
    """Configuration and dataset of a student. Its teacher has other stripes and another input size."""
    path = tmp_path / "teacher.pth"
    save_weights(path, content)
    flags = {"dataset_type": ("tiny",), "dataset_path": str(tiny), "backbone": "resnet18", "pretrained": "none",
             "h": 64, "w": 32, "stripes": (2,), "batch_size": 8, "max_steps": 6, "exp_dir": str(tmp_path / "logs"),
             "steps_per_log": 1, "teacher": str(path), "precision": "fp32"}  # fmt: skip
    return from_flags(flags), open_dataset("tiny", str(tiny), 0)


def teacher_of(config, dataset, classes=tuple(range(8))):
    return read_teacher(config, dataset, list(classes), CPU, "fp32")


def test_the_teacher_is_its_model_in_eval_mode(taught):
    teacher = teacher_of(*taught)
    assert "features and logits" in teacher.words
    model, _ = read_weights(taught[0].teacher)
    images = torch.randn(3, 3, 64, 32)
    larger = F.interpolate(images, (128, 32), mode="bilinear", antialias=True)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    features, logits = teacher(images)
    assert not features.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(features, model(larger), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(logits, model.logits(larger), rtol=1e-3, atol=1e-3)
        some = teacher_of(*taught, classes=(1, 5, 6))(images)[1]
    assert torch.equal(some, logits[..., [1, 5, 6]])
    assert same(before, teacher.model.state_dict())


@pytest.mark.parametrize("changes", [{"fingerprint": "another"}, {"fingerprint": None}, {"classes": 0}])
def test_features_alone_without_the_same_identities(taught, changes):
    config, dataset = taught
    content = {**load_checkpoint(Path(config.teacher)), **changes}
    if content["classes"] == 0:
        content["state"] = {k: v for k, v in content["state"].items() if "classifiers" not in k}
    save_weights(Path(config.teacher), content)
    teacher = teacher_of(config, dataset)
    assert "features only" in teacher.words
    features, logits = teacher(torch.randn(2, 3, 128, 32))
    assert features.shape == (2, 5, 256) and logits is None


def test_a_teacher_that_was_trained_on_fewer_or_on_held_out_identities(taught):
    config, dataset = taught
    held_out = Config(**{**vars(config), "train_set": "train", "num_val": 2})
    teacher = teacher_of(held_out, dataset, range(6))
    assert "features and logits" in teacher.words and "held-out identities were in its training" in teacher.words
    content = load_checkpoint(Path(config.teacher))
    content["config"]["data"] |= {"train_set": "train", "num_val": 2}
    save_weights(Path(config.teacher), content)
    assert "features only" in teacher_of(config, dataset).words
    teacher = teacher_of(held_out, dataset, range(6))
    assert "features and logits" in teacher.words and "held-out" not in teacher.words


def test_flags(taught, tmp_path):
    config, _ = taught
    assert "teacher-teacher" in run_name(config)
    with pytest.raises(InputError, match="--teacher_weight needs --teacher"):
        Config(teacher_weight=2.0)
    with pytest.raises(InputError, match="--teacher_weight 0 does not use the teacher"):
        Config(teacher="a.pth", teacher_weight=0.0)
    with pytest.raises(InputError, match=r"--teacher .*no\.pth is not a file"):
        trainer.train(Config(**{**vars(config), "teacher": str(tmp_path / "no.pth")}))
    assert not list((tmp_path / "logs").rglob("config.json"))


def two_steps(target) -> int:
    """One process's part of two distilled steps in float64; the first writes losses and weights to `target`."""
    torch.set_num_threads(1)
    with connected(CPU) as here:
        torch.manual_seed(0)
        student, master = (RRID(4, (n,), "resnet18", dim=8).double() for n in (2, 4))
        config = Config(backbone="resnet18", stripes=(2,), batch_size=8, precision="fp32", margin=0.3, teacher="t")
        step = TrainStep(student, config, CPU, here)
        master.eval().training = True
        step.teacher = Teacher(master, (64, 32), torch.arange(4), CPU)
        labels, losses = torch.arange(4).repeat_interleave(2), []
        for i in range(2):
            images = torch.randn(8, 3, 64, 32, dtype=torch.double, generator=torch.Generator().manual_seed(i))
            mine = here.share(8)
            terms = step(images[mine], labels[mine], (1e-3, 1e-2))
            rows = gather_rows(torch.stack(list(terms.values()))[None])
            losses.append(rows.mean(0))
        if here.first:
            torch.save({"losses": torch.stack(losses), "state": student.state_dict()}, target)
    return 0


@pytest.mark.distributed
@pytest.mark.slow
def test_number_of_processes_changes_nothing(tmp_path):
    two_steps(tmp_path / "1.pt")
    assert launch(two_steps, tmp_path / "2.pt", 2) == 0
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-9, atol=1e-9)
    for name, tensor in one["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.slow
def test_resume_equals_the_straight_run(taught, tmp_path, monkeypatch):
    """The same bits. The teacher's file may be moved, but not changed or missing."""
    config, _ = taught
    straight = trainer.train(Config(**{**vars(config), "name": "straight"}))
    lines = [m for m in metrics(straight.parent) if "loss" in m]
    assert all(m["imitation"] > 0 and m["similarity"] > 0 for m in lines)
    (start,) = json.loads((straight.parent / "versions.json").read_text(encoding="utf-8"))
    assert start["teacher"]["file"] == config.teacher and len(start["teacher"]["sha256"]) == 64

    stop = lambda self, *a: self.step == 3  # noqa: E731
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(trainer.Trainer, "must_stop", stop)
        trainer.train(Config(**{**vars(config), "name": "cut"}))
    cut = {**vars(config), "name": "cut", "resume": "newest"}
    moved = shutil.move(config.teacher, tmp_path / "moved.pth")
    with pytest.raises(InputError, match=r"--teacher .*teacher\.pth is not a file"):
        trainer.train(Config(**cut))
    cut |= {"resume": str(tmp_path / "logs" / "tiny" / "cut"), "teacher": str(make_weights(tmp_path / "other.pth"))}
    with pytest.raises(InputError, match=r"the configuration differs: teacher SHA-256 \w{12} -> \w{12}; repeat"):
        trainer.train(Config(**cut))
    weights = trainer.train(Config(**{**cut, "teacher": str(moved)}))
    assert same(state_of(weights), state_of(straight))
    assert [m for m in metrics(weights.parent) if "loss" in m] == lines
