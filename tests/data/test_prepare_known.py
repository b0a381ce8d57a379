"""DukeMTMC, Occluded-Duke, CUHK03 and MSMT17: fabricated images under the real names, and bad protocol files."""

import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image as PILImage
from test_prepare import jpeg, names_only, write_files

from reid.data.prepare import cuhk03, listed, market, prepare
from reid.data.prepare.archive import in_folder
from reid.data.prepare.known import DATASETS
from reid.data.prepare.plan import assert_sound
from reid.data.published import PUBLISHED
from reid.data.read import read_dataset
from reid.errors import InputError

CONFIG = "cuhk03_new_protocol_config_{}.mat"


@pytest.mark.slow
def test_duke_of_the_real_list(shared, tmp_path):
    """36,411 fabricated images in a zip become the dataset with the published counts; 408 identities have no query."""
    source, picture = tmp_path / "DukeMTMC-reID.zip", jpeg()
    with zipfile.ZipFile(source, "w") as archive:
        for part in ("train", "query", "test"):
            for line in (
                (shared / f"data/lists/triplet-reid/dukeMTMC_{part}.csv").read_text(encoding="utf-8").splitlines()
            ):
                archive.writestr("DukeMTMC-reID/" + line.split(",")[1], picture)
    dataset = prepare("dukemtmc", source, tmp_path / "sets")
    assert (len(dataset.trainval), len(dataset.query), len(dataset.gallery)) == (16_522, 2_228, 17_661)
    assert len(dataset.distractors) == 408 and dataset.num_cameras == 8
    assert [(len({i.pid for i in s}), len(s)) for s in dataset.hold_out(100)] == [(602, 14_348), (100, 2_174)]


def numbered(count: int, identities: int, name, first: int = 0) -> list[str]:
    """`count` names over `identities`, each at least once; name(pid, number)."""
    return [name(first + i % identities, i) for i in range(count)]


def test_occluded_duke_has_its_own_counts():
    def of(folder):
        return lambda pid, i: f"Occluded_Duke/{folder}/{pid:04d}_c{i % 8 + 1}_f{i:07d}.jpg"

    names = numbered(15_618, 702, of("bounding_box_train"), 2000) + numbered(2_210, 519, of("query"))
    names += numbered(17_661, 1_110, of("bounding_box_test"))
    plan = DATASETS["occluded_duke"].read(names_only(names))
    assert_sound("occluded_duke", plan, Path("x"))
    assert plan.counts() == PUBLISHED["occluded_duke"]
    with pytest.raises(
        InputError, match=r"trainval has 702 identities and 15,618 images; published: 702 identities and 16,522 images"
    ):
        assert_sound("dukemtmc", plan, Path("x"))


def write_mat(path: Path, kinds, tests=()) -> Path:
    """cuhk-03.mat as MATLAB v7.3 stores it. kinds: {"labeled": names like 1_001_1_01.png}; cells hold 4x2 pixels."""
    with h5py.File(path, "w") as file:
        empty = file.create_dataset("#refs#/empty", data=np.zeros(2, np.uint64))
        for kind, names in kinds.items():
            places = [tuple(map(int, name[:-4].split("_"))) for name in names]
            pairs = []
            for pair in range(1, 6):
                mine = [(person, number) for p, person, _, number in places if p == pair]
                cells = np.full((10, max((person for person, _ in mine), default=1)), empty.ref, h5py.ref_dtype)
                for person, number in mine:
                    pixels = np.zeros((3, 2, 4), np.uint8)
                    pixels[0], pixels[1, 0], pixels[2, :, 0] = person % 256, number, pair
                    cells[number - 1, person - 1] = file.create_dataset(
                        f"#refs#/{kind}{pair}_{person}_{number}", data=pixels
                    ).ref
                pairs.append(file.create_dataset(f"#refs#/{kind}{pair}", data=cells, dtype=h5py.ref_dtype).ref)
            file.create_dataset(kind, data=np.array([pairs], h5py.ref_dtype), dtype=h5py.ref_dtype)
        sets = [file.create_dataset(f"#refs#/t{i}", data=np.array(t, float).T).ref for i, t in enumerate(tests)]
        file.create_dataset("testsets", data=np.array([sets], h5py.ref_dtype), dtype=h5py.ref_dtype)
    return path


def write_config(path: Path, names, train, query, gallery, **changes) -> Path:
    """A protocol file over names like 1_001_1_01.png; the indices count from 1."""
    content = {
        "filelist": np.array([[n] for n in names], object),
        "labels": np.array([[2 * int(n[0]) - 2 + int(n[2:5])] for n in names], np.uint16),
        "camId": np.array([[int(n.split("_")[2])] for n in names], np.uint8),
        "train_idx": np.array([train]).T,
        "query_idx": np.array([query]).T,
        "gallery_idx": np.array([gallery]).T,
    } | changes
    scipy.io.savemat(path, {k: v for k, v in content.items() if v is not None})
    return path


@pytest.mark.slow
def test_cuhk03_of_the_real_protocol(shared, tmp_path):
    """14,096 fabricated cells of a cuhk-03.mat: the 767/700 protocol written as PNG, and the 20 classic splits."""
    lists = shared / "data/lists/cuhk03"
    protocol = scipy.io.loadmat(lists / CONFIG.format("labeled"))
    names = [cell.item() for cell in protocol["filelist"].ravel()]
    people = sorted({tuple(map(int, n.split("_")[:2])) for n in names})
    rng = np.random.default_rng(0)
    tests = [[people[i] for i in rng.choice(len(people), 100, replace=False)] for _ in range(20)]
    folder = tmp_path / "cuhk03"
    folder.mkdir()
    mat = write_mat(folder / "cuhk-03.mat", {"labeled": names}, tests)
    shutil.copy(lists / CONFIG.format("labeled"), folder)

    classic = cuhk03.plan_classic(names_in(folder), "labeled")
    assert_sound("cuhk03_classic", classic, mat)
    assert len(classic.splits) == 20 and classic.counts(7)["all"] == (1_467, 14_096)
    assert classic.counts(7)["trainval"][0] == 1_367 and classic.splits[7].query == classic.splits[7].gallery

    dataset = prepare("cuhk03_labeled", folder, tmp_path / "sets")
    assert dataset.folder.name == "cuhk03" and dataset.num_cameras == 2
    assert [len(s) for s in (dataset.trainval, dataset.query, dataset.gallery)] == [7_368, 1_400, 5_328]
    assert [(len({i.pid for i in s}), len(s)) for s in dataset.hold_out(100)] == [(667, 6_500), (100, 868)]
    row = protocol["query_idx"].ravel()[0] - 1
    pair, person, _, number = (int(part) for part in names[row][:-4].split("_"))
    with PILImage.open(dataset.query[0].path) as image:  # (x, y) of the MATLAB array (row, column)
        assert image.size == (2, 4) and image.format == "PNG"
        assert image.getpixel((0, 0)) == (person % 256, number, pair) and image.getpixel((1, 3)) == (person % 256, 0, 0)
    with pytest.raises(InputError, match=r"inside a .mat file; they cannot be linked"):
        prepare("cuhk03", folder, tmp_path / "linked", link=True)


def names_in(folder: Path):
    return in_folder(folder, {p.name: p.stat().st_size for p in folder.iterdir()})


def test_cuhk03_np_folders_of_the_real_protocol(shared):
    names = []
    for kind in ("labeled", "detected"):
        protocol = scipy.io.loadmat(shared / "data/lists/cuhk03" / CONFIG.format(kind))
        pids, cameras = protocol["labels"].ravel(), protocol["camId"].ravel()
        for key, folder in (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")):
            for i in protocol[f"{key}_idx"].ravel() - 1:
                names.append(f"cuhk03-np/{kind}/{folder}/{pids[i]:04d}_c{cameras[i]}_{i}.png")
    for name in ("cuhk03", "cuhk03_detected"):
        plan = DATASETS[name].read(names_only(names))
        assert plan.counts() == PUBLISHED[name] and plan.num_cameras == 2
    with pytest.raises(InputError, match=r"has no labeled/bounding_box_train/; expected"):
        cuhk03.plan(names_only(n for n in names if "/labeled/" not in n), "labeled")


SMALL = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_01.png", "1_002_2_06.png", "2_001_1_01.png"]


@pytest.fixture
def small_cuhk(tmp_path):
    folder = tmp_path / "cuhk"
    folder.mkdir()
    write_mat(folder / "cuhk-03.mat", {"labeled": SMALL, "detected": SMALL[:4]}, [[(1, 2)], [(1, 1), (2, 1)]])
    write_config(folder / CONFIG.format("labeled"), SMALL, [1, 2], [3], [4, 5])
    return folder


def test_small_cuhk03_in_an_archive(monkeypatch, small_cuhk, tmp_path):
    for name in ("cuhk03", "cuhk03_classic"):
        monkeypatch.setitem(PUBLISHED, name, {})
    with zipfile.ZipFile(tmp_path / "cuhk03_release.zip", "w") as archive:
        archive.write(small_cuhk / "cuhk-03.mat", "cuhk03_release/cuhk-03.mat")
    with pytest.raises(InputError, match=r"has cuhk-03.mat but no cuhk03_new_protocol_config_labeled.mat; put"):
        prepare("cuhk03", tmp_path / "cuhk03_release.zip", tmp_path / "sets")
    shutil.copy(small_cuhk / CONFIG.format("labeled"), tmp_path)
    dataset = prepare("cuhk03", tmp_path / "cuhk03_release.zip", tmp_path / "sets")
    assert [(i.pid, i.camid) for i in dataset.query + dataset.gallery] == [(2, 0), (2, 1), (3, 0)]

    classic = prepare("cuhk03_classic", small_cuhk / "cuhk-03.mat", tmp_path / "sets")
    assert {i.pid for i in classic.trainval} == {1, 3} and {i.pid for i in classic.query} == {2}
    assert "classic protocol" in classic.protocol
    second = read_dataset(classic.folder, 1)
    assert {i.pid for i in second.trainval} == {2} and [i.pid for i in second.gallery] == [1, 1, 3]


def test_bad_protocol_files(small_cuhk):
    source, config = names_in(small_cuhk), small_cuhk / CONFIG.format("labeled")
    cases = {
        "outside 1 to 5": lambda: write_config(config, SMALL, [1, 2], [3], [4, 6]),
        "a camera is not 1 or 2": lambda: write_config(config, SMALL, [1], [3], [4], camId=np.full((5, 1), 3)),
        "'labels'": lambda: write_config(config, SMALL, [1], [3], [4], labels=None),
        "does not belong to the labeled images": lambda: write_config(config, SMALL[:4], [1], [3], [4]),
        "lists 5 images, of which 1 are not among": lambda: write_config(
            config, [*SMALL[:4], "3_001_1_01.png"], [1], [3], [4]
        ),
        "is not a readable protocol file": lambda: config.write_bytes(b"MATLAB 5.0 rubbish"),
        "is not a readable protocol file of": lambda: config.write_bytes(b""),
    }
    for message, change in cases.items():
        change()
        with pytest.raises(InputError, match=message) as caught:
            cuhk03.plan(source, "labeled")
        assert config.name in str(caught.value)


def test_unreadable_mat(small_cuhk):
    mat, source = small_cuhk / "cuhk-03.mat", names_in(small_cuhk)
    content = mat.read_bytes()
    for bad in (b"", b"MATLAB 7.3 MAT-file", content[: len(content) // 2]):
        mat.write_bytes(bad)
        with pytest.raises(InputError, match=r"cuhk-03.mat: labeled images cannot be read"):
            cuhk03.plan_classic(source, "labeled")
    with h5py.File(mat, "w") as file:
        file["labeled"] = np.zeros(3)
    with pytest.raises(InputError, match=r"cuhk-03.mat: labeled images cannot be read"):
        cuhk03.plan_classic(source, "labeled")
    mat.unlink()
    with pytest.raises(InputError, match=r"has no cuhk-03.mat; expected"):
        cuhk03.plan_classic(names_in(small_cuhk), "labeled")


def msmt(version: str, train: int, val: int, query: int, gallery: int, ids: tuple[int, int], lists=None):
    """A source in the layout of MSMT17 with these numbers of images."""
    folders, texts, names = listed.MSMT17[version], {}, []
    first = 0
    for file, count in zip(listed.MSMT17_LISTS, (train, val, query, gallery), strict=True):
        folder, people = (folders[0], ids[0]) if listed.MSMT17_LISTS[file] == "trainval" else (folders[1], ids[1])
        rows = [
            (f"{i % people:04d}/{i % people:04d}_{first + i:06d}_{i % 15 + 1:02d}_0303morning_0008_0.jpg", i % people)
            for i in range(count)
        ]
        first += count
        names += [f"MSMT17/{folder}/{path}" for path, _ in rows]
        texts[f"MSMT17/{file}"] = "".join(f"{path} {pid}\n" for path, pid in rows).encode()
    return names_only(names, texts | (lists or {}))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_msmt17_versions_are_recognised(version):
    source = msmt(version, 30_248, 2_373, 11_659, 82_161, (1_041, 3_060))
    plan = DATASETS[f"msmt17_{version}"].read(source)
    assert_sound(f"msmt17_{version}", plan, Path("x"))
    assert plan.num_cameras == 15 and {c for _, _, c in plan.images} == set(range(15))
    assert min(plan.images[i][1] for i in plan.splits[0].query) == 1_041
    other = {"v1": "v2", "v2": "v1"}[version]
    with pytest.raises(InputError, match=rf"is MSMT17 {version.upper()}; run: python -m reid prepare msmt17_{version}"):
        listed.plan_msmt17(source, other)


def test_bad_msmt17_lists(tmp_path):
    def bad(text):
        return msmt("v1", 4, 2, 2, 4, (2, 2), {"MSMT17/list_query.txt": text})

    with pytest.raises(InputError, match=r"1 image names .*\n  list_query.txt, line 2: 0000/a.jpg 0"):
        listed.plan_msmt17(bad(b"0000/0000_000006_01_0303morning_0008_0.jpg 0\n0000/a.jpg 0\n"), "v1")
    with pytest.raises(InputError, match=r"1 listed images do not exist; the first: list_query.txt, line 1"):
        listed.plan_msmt17(bad(b"0000/0000_000_01_x.jpg 0\n"), "v1")
    with pytest.raises(InputError, match=r"has no list_train.txt; expected train, test, list_train.txt"):
        prepare("msmt17_v1", write_files(tmp_path / "m", ["train/0000/a.jpg"]), tmp_path / "sets")
    with pytest.raises(InputError, match=r"must have either train/ or mask_train_v2/"):
        listed.plan_msmt17(names_only([], {"list_train.txt": b""}), "v1")
    whole = msmt("v1", 4, 2, 2, 4, (2, 2))
    with pytest.raises(InputError, match=r"has no MSMT17/list_val.txt; expected list_train.txt, list_val.txt"):
        listed.plan_msmt17(type(whole)(whole.path, {n: 1 for n in whole.sizes if "val" not in n}, whole.files), "v1")


def test_cameras_beyond_those_of_the_dataset_are_refused():
    names = ["bounding_box_train/0001_c8_f1.jpg", "query/0002_c1_f1.jpg", "bounding_box_test/0002_c2_f1.jpg"]
    assert market.plan(names_only(names), 8).images[0][2] == 7
    with pytest.raises(InputError, match=r"1 image names are not of the form {pid}_c{camera 1 to 6}_"):
        market.plan(names_only(names), 6)
