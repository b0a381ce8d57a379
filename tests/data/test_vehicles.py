"""VeRi-776, VehicleID and Market-1501's gt_bbox: fabricated images under the real names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from test_prepare import MARKET, names_only

from reid.__main__ import main
from reid.data.prepare import prepare
from reid.data.prepare.known import DATASETS
from reid.data.prepare.plan import assert_sound
from reid.data.published import GT_BBOX, PUBLISHED
from reid.errors import InputError


def drawn(path: Path, pid: int, seed: int, size=(40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([pid, seed])
    pixels = np.full((size[1], size[0], 3), np.random.default_rng(pid).integers(0, 255, 3)) + rng.normal(0, 20, 3)
    PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def veri(folder: Path) -> Path:
    """4 training and 3 test vehicles, 2 cameras, and 2 tracks for each test vehicle in each camera."""
    lines = []
    for part, pids in (("image_train", range(1, 5)), ("image_query", range(5, 8)), ("image_test", range(5, 8))):
        for pid in pids:
            for camera in (1, 20):
                names = [f"{pid:04d}_c{camera:03d}_{shot:08d}_0.jpg" for shot in range(1 if "query" in part else 4)]
                for shot, name in enumerate(names):
                    drawn(folder / part / name, pid, 100 * camera + shot)
                if part == "image_test":
                    lines += [f"{pid:04d}_c{camera:03d}_{k} {names[2 * k]} {names[2 * k + 1]} \n" for k in (0, 1)]
    (folder / "test_track.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def test_published_counts_of_veri():
    def names(part, count, identities, first):
        return [f"VeRi/{part}/{first + i % identities:04d}_c{i % 20 + 1:03d}_{i:08d}_0.jpg" for i in range(count)]

    files = names("image_train", 37_778, 576, 1) + names("image_query", 1_678, 200, 600)
    plan = DATASETS["veri776"].read(names_only(files + names("image_test", 11_579, 200, 600)))
    assert_sound("veri776", plan, Path("x"))
    assert plan.counts() == PUBLISHED["veri776"]
    plan = DATASETS["veri776"].read(names_only(files + names("image_test", 11_578, 200, 600)))
    with pytest.raises(InputError, match="gallery has 200 identities and 11,578 images; published"):
        assert_sound("veri776", plan, Path("x"))


@pytest.mark.parametrize(
    "size, ids, images", [("small", 800, 6_493), ("medium", 1_600, 13_377), ("large", 2_400, 19_777)]
)
def test_published_counts_of_vehicleid(size, ids, images):
    train = [(f"{i:07d}", i % 13_164) for i in range(113_346)]
    test = [(f"{200_000 + i:07d}", 20_000 + i % ids) for i in range(images)]
    texts = {
        "VehicleID/train_test_split/train_list.txt": train,
        f"VehicleID/train_test_split/test_list_{ids}.txt": test,
    }
    lists = {k: "\n".join(f"{name} {pid}" for name, pid in rows).encode() for k, rows in texts.items()}
    source = names_only([f"VehicleID/image/{name}.jpg" for name, _ in train + test], lists)
    plan = DATASETS[f"vehicleid_{size}"].read(source)
    assert_sound(f"vehicleid_{size}", plan, Path("x"))
    assert plan.counts() == PUBLISHED[f"vehicleid_{size}"] and plan.splits[0].query == plan.splits[0].gallery
    chosen = [plan.images[i][1:] for i in plan.splits[0].query]
    assert len(set(chosen)) == images  # identity and number in place of the camera name one image


def test_bad_lists_of_vehicleid():
    lists = {f"train_test_split/{n}.txt": b"0000001 1\n" for n in ("train_list", "test_list_800")}
    read = DATASETS["vehicleid_small"].read
    with pytest.raises(InputError, match=r"1 listed images do not exist; the first: train_list.txt, line 1: .*0000001"):
        read(names_only([], lists))
    with pytest.raises(InputError, match=r"not of the form <image> {pid}.*\n  train_list\.txt, line 1: one"):
        read(names_only([], lists | {"train_test_split/train_list.txt": b"one\n"}))
    with pytest.raises(InputError, match=r"has no train_test_split/test_list_1600.txt"):
        DATASETS["vehicleid_medium"].read(names_only(["image/0000001.jpg"], lists))


def test_gt_bbox_of_market(monkeypatch, tmp_path):
    """Only its images of a query's identity and camera are kept; a wrong number of images is refused."""
    boxes = ["0001_c1s1_001051_00.jpg", "0001_c1s1_001076_00.jpg", "0001_c2s1_000301_00.jpg", "0002_c1s1_000451_00.jpg"]
    monkeypatch.setitem(PUBLISHED, "market1501", {})
    monkeypatch.setitem(GT_BBOX, "market1501", 4)
    for i, name in enumerate([*MARKET, *(f"gt_bbox/{n}" for n in boxes)]):
        drawn(tmp_path / "raw" / name, 1, i)
    dataset = prepare("market1501", tmp_path / "raw", tmp_path / "sets")
    names = [dataset.labels.source(Path(i.path).name) for i in dataset.multi_query]
    assert names == [f"gt_bbox/{n}" for n in boxes[:2]] and {i[1:] for i in dataset.multi_query} == {(1, 0)}
    monkeypatch.setitem(GT_BBOX, "market1501", 25_259)
    with pytest.raises(InputError, match="gt_bbox has 4 images; published: 25,259"):
        prepare("market1501", tmp_path / "raw", tmp_path / "others")


@pytest.mark.slow
def test_a_vehicle_set_from_training_to_search(monkeypatch, tmp_path, capsys):
    """Square images; image to track; no text speaks of a person."""
    monkeypatch.setitem(PUBLISHED, "veri776", {})
    monkeypatch.chdir(tmp_path)
    sets = ["--dataset_path", "sets", "--exp_dir", "logs"]
    prepare("veri776", veri(tmp_path / "VeRi"), "sets")
    small = ["--backbone", "resnet18", "--pretrained", "none", "--stripes", "2", "--h", "256", "--w", "256"]
    steps = ["--max_steps", "1", "--batch_size", "8", "--name", "tiny"]
    assert main(["train", "--dataset_type", "veri776", *sets, *small, *steps]) == 0
    weights = "logs/veri776/tiny/weights.pth"
    for more in ((), ("--tracks",), ("--multi_query", "max", "--report")):
        assert main(["evaluate", "--weights", weights, *sets, *more]) == 0
    out = capsys.readouterr().out
    assert "6 queries, 24 gallery images" in out and "6 queries, 12 gallery images" in out
    assert main(["evaluate", "--weights", weights, *sets, "--tracks", "--report"]) == 2
    assert main(["table", "logs"]) == 0
    table = capsys.readouterr().out
    assert "veri776 multi_query-max" in table and "veri776 tracks" in table
    names = sorted(str(p) for p in Path("VeRi/image_test").glob("0005*"))
    assert main(["gallery", "create", "g.h5", "--weights", weights, "--images", "VeRi/image_test"]) == 0
    search = ["gallery", "search", "g.h5", "--weights", weights, "--images", *names[:2], "--multi_query", "mean"]
    assert main([*search, "--top", "3"]) == 0
    found = capsys.readouterr().out
    assert "mean of 2 images:" in found and found.count("identity") == 1
    report = next(Path("logs").rglob("report.html")).read_text(encoding="utf-8")
    for text in (out, table, found, report):
        assert not any(word in text.lower() for word in ("person", "pedestrian", "people"))
