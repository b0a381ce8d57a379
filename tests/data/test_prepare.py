"""Preparing datasets: the real Market-1501, its parts, atomic results."""

import io
import json
import os
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from PIL import Image as PILImage

from reid.__main__ import main
from reid.data.check import check_lists
from reid.data.prepare import market, open_dataset, prepare
from reid.data.prepare.archive import Member, Source, open_source
from reid.data.prepare.known import DATASETS, find_raw
from reid.data.prepare.write import build
from reid.data.published import PUBLISHED
from reid.data.read import read_dataset
from reid.errors import InputError, MissingInput

MARKET = {
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c3s1_000551_01.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "bounding_box_test/0001_c2s1_000301_00.jpg.jpg",
    "bounding_box_test/0000_c5s1_000401_03.jpg",  # distractor
    "bounding_box_test/-1_c1s1_000401_03.jpg",  # junk
}
COUNTS = {"trainval": (1, 2), "query": (1, 1), "gallery": (2, 2)}


def jpeg(shade: int = 0) -> bytes:
    out = io.BytesIO()
    PILImage.new("RGB", (16, 32), (shade % 256, shade // 256 % 256, 90)).save(out, "JPEG", comment=f"{shade:05}")
    return out.getvalue()


def write_files(folder: Path, names) -> Path:
    for shade, name in enumerate(sorted(names)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(shade) if name.lower().endswith((".jpg", ".png")) else b"rubbish")
    return folder


def write_zip(path: Path, names, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for shade, name in enumerate(sorted(names)):
            archive.writestr(name, jpeg(shade))
    return path


def write_tar(path: Path, names) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for shade, name in enumerate(sorted(names)):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg(shade))
            archive.addfile(info, io.BytesIO(jpeg(shade)))
    return path


@pytest.fixture(autouse=True)
def infos(caplog):
    caplog.set_level("INFO", "reid")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(PUBLISHED, "market1501", COUNTS)


def snapshot(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.mark.slow
def test_real_market_is_found_prepared_and_sound(shared, tmp_path, caplog, capsys):
    """A raw archive is prepared on first use, with the published counts and unchanged bytes."""
    archive = shared / "data/Market-1501-v15.09.15.zip"
    (tmp_path / archive.name).symlink_to(archive)
    dataset = open_dataset("market1501", tmp_path)
    assert {s: (len({i.pid for i in v}), len(v)) for s in PUBLISHED["market1501"] for v in [getattr(dataset, s)]} == (
        {"trainval": (751, 12_936), "query": (750, 3_368), "gallery": (751, 15_913)}
    )
    assert sum(i.pid == 0 for i in dataset.gallery) == 2_798 and dataset.distractors == {0}
    assert "dropped: 3,819 junk (pid -1)" in caplog.text
    train, val = dataset.hold_out(100)
    assert (len({i.pid for i in train}), len(train), len({i.pid for i in val}), len(val)) == (651, 11_509, 100, 1_427)
    assert [sum(i.camid == c for i in dataset.query) for c in range(6)] == [668, 530, 717, 248, 622, 583]

    sources = json.loads((tmp_path / "market1501/meta.json").read_text(encoding="utf-8"))["sources"]
    with zipfile.ZipFile(archive) as original:
        for image in (*dataset.query[::500], *dataset.gallery[::3000], *dataset.trainval[::3000]):
            name = sources[os.path.basename(image.path)]
            assert Path(image.path).read_bytes() == original.read(name)
            assert Path(name).name.startswith(f"{image.pid:04d}_c{image.camid + 1}")
    assert main(["check", "market1501", "--dataset_path", str(tmp_path)]) == 0
    assert "0 findings" in capsys.readouterr().out


def test_real_lists_of_market_and_duke_are_parsed(shared):
    """The file lists of another project, read by name alone, have the published counts."""
    for name, file, cameras in (("market1501", "market1501", 6), ("dukemtmc", "dukeMTMC", 8)):
        lines = [
            line.split(",")[1]
            for part in ("train", "query", "test")
            for line in (shared / f"data/lists/triplet-reid/{file}_{part}.csv").read_text(encoding="utf-8").splitlines()
        ]
        plan = market.plan(names_only(lines), cameras)
        assert plan.counts() == PUBLISHED[name]
        assert not plan.ignored and sum(plan.dropped.values()) == (3_819 if name == "market1501" else 0)


def names_only(names, texts=None):
    """A source of names without content, except for some texts."""
    sizes = dict.fromkeys(sorted([*names, *(texts or {})]), 1)
    contents = dict.fromkeys(sizes, b"") | (texts or {})
    files = {name: Member(name, 1, 0, partial(io.BytesIO, content), "") for name, content in contents.items()}
    return Source(Path("source.zip"), sizes, files)


@pytest.mark.parametrize("form", ["folder", "deep folder", "zip", "tar", "tar.gz"])
def test_each_kind_of_source_gives_the_same_dataset(small, tmp_path, form):
    names = [f"Market-1501-v15.09.15/{n}" for n in MARKET] if form == "deep folder" else MARKET
    source = tmp_path / f"raw.{form}"
    {"zip": write_zip, "tar": write_tar, "tar.gz": write_tar}.get(form, write_files)(source, names)
    dataset = prepare("market1501", source, tmp_path / "sets")
    assert [(i.pid, i.camid) for i in dataset.trainval] == [(2, 0), (2, 2)]
    assert [(i.pid, i.camid) for i in dataset.query] == [(1, 0)]
    assert [(i.pid, i.camid) for i in dataset.gallery] == [(0, 4), (1, 1)]
    assert snapshot(tmp_path / "sets/market1501/images") == [
        "00000000_0004_00000000.jpg",
        "00000001_0000_00000000.jpg",
        "00000001_0001_00000000.jpg",
        "00000002_0000_00000000.jpg",
        "00000002_0002_00000000.jpg",
    ]
    assert dataset.fingerprint == prepare("market1501", source, tmp_path / "again").fingerprint
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["market1501"]


def test_a_prepared_dataset_is_not_changed(small, tmp_path, caplog):
    source = write_zip(tmp_path / "raw.zip", MARKET)
    prepare("market1501", source, tmp_path / "sets")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "sets").rglob("*")}
    caplog.clear()
    prepare("market1501", source, tmp_path / "sets")
    assert "is already prepared" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "sets").rglob("*")}


def test_links_instead_of_copies(small, tmp_path):
    source = write_files(tmp_path / "raw", MARKET)
    dataset = prepare("market1501", source, tmp_path / "sets", link=True)
    query = Path(dataset.query[0].path)
    assert query.is_symlink() and query.resolve() == source / "query/0001_c1s1_001051_00.jpg"
    with pytest.raises(InputError, match=r"is an archive, so its images can only be copied"):
        prepare("market1501", write_zip(tmp_path / "raw.zip", MARKET), tmp_path / "other", link=True)
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("refused", [["symlink"], ["symlink", "link"]])
def test_hard_links_or_copies_where_the_system_refuses_links(small, tmp_path, monkeypatch, refused):
    """Windows refuses symbolic links without a privilege, and hard links between drives."""

    def refuse(*arguments, **options):
        raise OSError(1314, "A required privilege is not held by the client")

    source = write_files(tmp_path / "raw", MARKET)
    for name in refused:
        monkeypatch.setattr(os, name, refuse)
    query = Path(prepare("market1501", source, tmp_path / "sets", link=True).query[0].path)
    original = source / "query/0001_c1s1_001051_00.jpg"
    assert not query.is_symlink() and query.read_bytes() == original.read_bytes()
    assert query.samefile(original) == ("link" not in refused)


def test_another_process_was_faster(tmp_path, monkeypatch):
    """A dataset that appears meanwhile is kept."""

    def fill(temporary):
        temporary.mkdir()
        (temporary / "meta.json").touch()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/meta.json").write_text("first", encoding="utf-8")

    build(tmp_path / "mine", fill)
    assert (tmp_path / "mine/meta.json").read_text(encoding="utf-8") == "first"
    assert snapshot(tmp_path) == ["mine", "mine/meta.json"]


@pytest.mark.parametrize("place", ["Market-1501-v15.09.15", "market1501", "market/deep", "anything/deep"])
def test_raw_folders_are_found_on_first_use(small, tmp_path, place):
    write_files(tmp_path / place, MARKET)
    (tmp_path / "other").mkdir()
    assert len(open_dataset("market1501", tmp_path).trainval) == 2
    if place == "market1501":  # the raw folder itself becomes the dataset
        assert (tmp_path / place / "query/0001_c1s1_001051_00.jpg").exists()
    assert not list(tmp_path.glob(".*"))


def test_raw_data_of_another_dataset_is_not_taken(tmp_path):
    write_files(tmp_path / "DukeMTMC-reID", MARKET)
    write_files(tmp_path / "Occluded_Duke", MARKET)
    write_files(tmp_path / "MSMT17_V2", ["mask_train_v2/0000/a.jpg"])
    write_zip(tmp_path / "MSMT17_V1.zip", MARKET)
    (tmp_path / "market_notes.txt").write_text("", encoding="utf-8")
    names = {n: find_raw(n, tmp_path) for n in ("dukemtmc", "occluded_duke", "msmt17_v1", "msmt17_v2", "cuhk03")}
    assert {n: p and p.name for n, p in names.items()} == {
        "dukemtmc": "DukeMTMC-reID",
        "occluded_duke": "Occluded_Duke",
        "msmt17_v1": "MSMT17_V1.zip",
        "msmt17_v2": "MSMT17_V2",
        "cuhk03": None,
    }


def test_the_message_for_a_missing_dataset_gives_its_origin(tmp_path):
    with pytest.raises(MissingInput, match=r"Market-1501-v15.09.15.zip, linked from https://.*--profile demo"):
        open_dataset("market1501", tmp_path)
    with pytest.raises(MissingInput, match=r"prepare folder --name mine --source .*--profile demo"):
        open_dataset("mine", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"'../x' is not a dataset name"):
        open_dataset("../x", tmp_path)


def test_500k_distractors_join_the_gallery_when_their_folder_is_there(small, tmp_path, caplog):
    more = {
        f"images/{n}" for n in ("0_c1s1_000001_00.jpg", "7_c6s2_000002_00.jpg", "-1_c2s1_000003_00.jpg", "Thumbs.db")
    }
    dataset = prepare("market1501", write_files(tmp_path / "raw", MARKET | more), tmp_path / "sets")
    assert [(i.pid, i.camid) for i in dataset.gallery] == [(0, 4), (1, 1), (0, 0), (0, 5)]
    assert dataset.protocol == "test.json: gallery enlarged by 2 distractors"
    assert "dropped: 1 junk (pid -1) in images" in caplog.text
    assert not [f for f in check_lists(dataset) if f.rule == "counts"]


def test_files_that_are_not_images_are_listed_and_left_out(small, tmp_path, caplog):
    source = write_files(tmp_path / "raw", MARKET | {"query/Thumbs.db", "bounding_box_test/readme.txt"})
    prepare("market1501", source, tmp_path / "sets")
    assert "ignored, not images: 1 .db (query/Thumbs.db), 1 .txt (bounding_box_test/readme.txt)" in caplog.text


def test_unreadable_names_are_all_listed(tmp_path):
    bad = {"query/anna.jpg", "query/0001_c9s1_001051_00.jpg", "bounding_box_train/-7_c1s1_000451_03.jpg"}
    with pytest.raises(InputError, match=r"3 image names are not of the form {pid}_c{camera 1 to 6}") as caught:
        prepare("market1501", write_files(tmp_path / "raw", MARKET | bad), tmp_path / "sets")
    assert all(name in str(caught.value) for name in bad)


def test_the_message_for_a_missing_subset_lists_what_was_found(tmp_path):
    for part in ("query", "bounding_box_test", "bounding_box_train"):
        names = {n for n in MARKET if not n.startswith(part)}
        with pytest.raises(InputError, match=rf"has no {part}/; expected bounding_box_train, .*found .*"):
            prepare("market1501", write_files(tmp_path / part, names), tmp_path / "sets")


def test_wrong_counts_are_refused_before_anything_is_written(tmp_path, caplog):
    with pytest.raises(
        InputError, match=r"trainval has 1 identities and 2 images; published: 751 identities and 12,936 images"
    ):
        prepare("market1501", write_files(tmp_path / "raw", MARKET), tmp_path / "sets")
    assert "751" in caplog.text and not (tmp_path / "sets").exists()


def test_overlapping_identities_are_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(PUBLISHED, "market1501", {})
    names = MARKET | {"bounding_box_train/0001_c1s1_000451_03.jpg"}
    with pytest.raises(InputError, match=r"pids in both training and test: 1;"):
        prepare("market1501", write_files(tmp_path / "raw", names), tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_missing_sources_and_files_that_are_not_archives(tmp_path):
    with pytest.raises(MissingInput, match=r"--source .*gone.zip does not exist"), open_source(tmp_path / "gone.zip"):
        pass
    (tmp_path / "page.zip").write_text("<html>quota exceeded</html>", encoding="utf-8")
    with (
        pytest.raises(InputError, match=r"page.zip: the archive .27 bytes. cannot be read"),
        open_source(tmp_path / "page.zip"),
    ):
        pass
    with pytest.raises(InputError, match=r"unknown dataset 'maket1501'; known are market1501, dukemtmc"):
        prepare("maket1501", tmp_path, tmp_path)


def test_a_failure_leaves_nothing_and_old_remains_are_removed(tmp_path):
    def half(folder):
        (folder / "images").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    old, young = tmp_path / ".mine.partial-1", tmp_path / ".mine.partial-2"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    with pytest.raises(InputError, match=r"cannot write .*mine.*No space left"):
        build(tmp_path / "mine", half)
    assert list(tmp_path.iterdir()) == [young]


def test_a_folder_with_other_images_is_not_changed(small, tmp_path):
    write_files(tmp_path / "market1501", MARKET | {"images/mine.txt"})
    with pytest.raises(InputError, match=r"has images/ but no meta.json"):
        open_dataset("market1501", tmp_path)
    assert (tmp_path / "market1501/images/mine.txt").exists() and not list(tmp_path.glob(".*"))


def test_a_link_to_its_own_folder_is_followed_once(small, tmp_path):
    source = write_files(tmp_path / "raw", MARKET)
    (source / "loop").symlink_to(source)
    assert len(prepare("market1501", source, tmp_path / "sets").trainval) == 2


def test_the_command_prints_the_table(small, tmp_path, capsys):
    source = write_zip(tmp_path / "raw.zip", MARKET)
    assert main(["prepare", "market1501", "--source", str(source), "--dataset_path", str(tmp_path / "sets")]) == 0
    out = capsys.readouterr().out
    assert "identities  published" in out and "ready in" in out
    assert read_dataset(tmp_path / "sets/market1501").num_cameras == 6
    assert main(["prepare", "market1501", "--source", "gone", "--dataset_path", str(tmp_path / "new")]) == 2
    assert "error: --source gone does not exist" in capsys.readouterr().err
    assert main(["prepare", "market1501", "--template", "{pid}", "--dataset_path", str(tmp_path)]) == 2
    assert "--template is only for your own images" in capsys.readouterr().err


def test_the_readme_of_the_datasets_has_every_command_and_count():
    text = (Path(__file__).parents[2] / "datasets/README.md").read_text(encoding="utf-8")
    for name, known in DATASETS.items():
        assert f"`python -m reid prepare {name} --source" in text and known.origin
        for ids, images in PUBLISHED[name].values():
            assert f"{ids:,} / {images:,}" in text if images else f"{ids:,}" in text
