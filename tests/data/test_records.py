"""The JSON contract: what is read, and the message of each rule."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_dataset

from reid.data.read import ALL_IMAGES, read_dataset
from reid.data.records import Dataset, Image, combine
from reid.errors import InputError, MissingInput

FORMS = {"ours": "{:08d}_{:04d}_{:08d}.jpg", "open-reid": "{:08d}_{:02d}_{:04d}.jpg"}


def write_tiny(folder: Path, form: str = "ours", content=None, with_test: bool = True) -> dict:
    """5 identities x 2 cameras x 2 images: pids 0, 1, 2 for training, 3 and 4 for the test; pid 4 has no query.

    Returns {"meta", "splits", "test"}; content(name) -> bytes of an image file.
    """
    names = [[[FORMS[form].format(p, c, i) for i in range(2)] for c in range(2)] for p in range(5)]
    query, gallery = [[names[3][0][0], 3, 0]], [[n, p, c] for p in (3, 4) for c in (0, 1) for n in names[p][c]]
    gallery.remove(query[0])
    files = {
        "meta": {"name": "tiny", "shot": "multiple", "num_cameras": 2, "identities": names},
        "splits": [{"trainval": [0, 1, 2], "query": [3], "gallery": [3, 4]}],
        "test": [{"query": query, "gallery": gallery}],
    }
    (folder / "images").mkdir(parents=True)
    for name in (n for cameras in names for some in cameras for n in some):
        (folder / "images" / name).write_bytes(content(name) if content else name.encode())
    if not with_test:
        del files["test"]
    save(folder, files)
    return files


def save(folder: Path, files: dict) -> None:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
def test_reads_subsets_places_and_protocol(tmp_path, form):
    write_tiny(tmp_path / "tiny", form)
    dataset = read_dataset(tmp_path / "tiny")
    assert [len(s) for s in (dataset.trainval, dataset.query, dataset.gallery)] == [12, 1, 7]
    assert dataset.query == [Image(str(tmp_path / "tiny/images" / FORMS[form].format(3, 0, 0)), 3, 0)]
    assert {i.pid for i in dataset.trainval} == {0, 1, 2} and dataset.num_cameras == 2
    assert dataset.protocol == "official lists (test.json)" and dataset.distractors == {4}
    row = "trainval               3        12        2"
    assert row in str(dataset) and repr(dataset) == str(dataset)


def test_open_reid_lists_in_meta_json_are_official(tmp_path):
    files = write_tiny(tmp_path / "d", with_test=False)
    files["meta"]["query_fnames"] = [files["meta"]["identities"][3][1][0]]
    files["meta"]["gallery_fnames"] = files["meta"]["identities"][3][0] + files["meta"]["identities"][4][1]
    save(tmp_path / "d", files)
    dataset = read_dataset(tmp_path / "d")
    assert [(i.pid, i.camid) for i in dataset.query] == [(3, 1)]
    assert [(i.pid, i.camid) for i in dataset.gallery] == [(3, 0), (3, 0), (4, 1), (4, 1)]
    assert "query_fnames" in dataset.protocol


def test_without_official_lists_the_protocol_says_that_all_images_are_used(tmp_path):
    write_tiny(tmp_path / "d", with_test=False)
    dataset = read_dataset(tmp_path / "d")
    assert (len(dataset.query), len(dataset.gallery), dataset.protocol) == (4, 8, ALL_IMAGES)


def test_explicit_distractors_double_suffix_and_note(tmp_path):
    files = write_tiny(tmp_path / "d")
    old, new = files["meta"]["identities"][4][0][0], "1488_c1s6_023021_02.jpg.jpg"
    (tmp_path / "d/images" / old).rename(tmp_path / "d/images" / new)
    files = json.loads(json.dumps(files).replace(old, new))
    files["meta"] |= {"distractors": [], "note": "drawn by hand"}
    save(tmp_path / "d", files)
    dataset = read_dataset(tmp_path / "d")
    assert dataset.distractors == frozenset() and dataset.protocol == "test.json: drawn by hand"
    assert any(i.path.endswith(".jpg.jpg") for i in dataset.gallery)


def test_every_split_of_several_is_read(tmp_path):
    files = write_tiny(tmp_path / "d", with_test=False)
    files["splits"].append({"trainval": [3, 4], "query": [0], "gallery": [0, 1]})
    save(tmp_path / "d", files)
    assert {i.pid for i in read_dataset(tmp_path / "d", 1).trainval} == {3, 4}
    with pytest.raises(InputError, match="2 entries and no --split 2; use --split 0 to 1"):
        read_dataset(tmp_path / "d", 2)


def test_fingerprint_depends_on_content_and_not_on_the_folder(tmp_path):
    prints = []
    for place in ("a", "b"):
        write_tiny(tmp_path / place)
        prints.append(read_dataset(tmp_path / place).fingerprint)
    assert prints[0] == prints[1] and len(prints[0]) == 64
    victim = sorted((tmp_path / "b/images").iterdir())[0]
    victim.write_bytes(victim.read_bytes() + b"!")
    assert read_dataset(tmp_path / "b").fingerprint != prints[0]


def test_hold_out_takes_the_last_sorted_identities(tmp_path):
    write_tiny(tmp_path / "d")
    dataset = read_dataset(tmp_path / "d")
    train, val = dataset.hold_out(1)
    assert ({i.pid for i in train}, {i.pid for i in val}) == ({0, 1}, {2}) and len(train) + len(val) == 12
    with pytest.raises(InputError, match=r"--num_val 3: d has 3 training identities; use 1 to 2, or"):
        dataset.hold_out(3)


def test_combine_keeps_identities_and_cameras_distinct(tmp_path):
    one = Dataset("a", tmp_path, [Image("x", 0, 0), Image("y", 5, 1)], [], [], 2, "p", frozenset())
    two = Dataset("b", tmp_path, [Image("z", 0, 0)], [Image("q", 7, 2)], [Image("g", 7, 0)], 3, "r", frozenset({7}))
    both = combine([one, two])
    assert both.trainval == [Image("x", 0, 0), Image("y", 5, 1), Image("z", 6, 2)]
    assert (both.query, both.gallery) == ([Image("q", 13, 4)], [Image("g", 13, 2)])
    assert (both.num_cameras, both.distractors, both.name, both.protocol) == (5, {13}, "a+b", "p + r")
    assert (both.labels.identity(13), both.labels.camera(4)) == ("b 7", "b 2")
    assert combine([one]) is one


def parts(files: dict) -> SimpleNamespace:
    """Short names for what the cases below break."""
    people, split, test = files["meta"]["identities"], files["splits"][0], files["test"][0]
    return SimpleNamespace(files=files, meta=files["meta"], people=people, split=split, test=test)


def half_official(d: SimpleNamespace) -> None:
    del d.files["test"]
    d.meta["query_fnames"] = []


BROKEN = {  # the change -> the message
    "identities is an object": (lambda d: d.meta.update(identities={}), "identities is an object, expected"),
    "no identities": (lambda d: d.meta.pop("identities"), "meta.json: identities is missing"),
    "person is text": (lambda d: d.people.__setitem__(1, "x"), r"identities\[1\] is text"),
    "camera is a number": (lambda d: d.people[1].__setitem__(1, 7), r"identities\[1\]\[1\] is 7, expected"),
    "name is a number": (lambda d: d.people[1][1].append(7), r"\[1\]\[1\]: 7 is not a file name"),
    "name up": (lambda d: d.people[1][1].append("../a.jpg"), "'../a.jpg' is outside the folder images/"),
    "name absolute": (lambda d: d.people[1][1].append("/etc/passwd"), "'/etc/passwd' is outside the"),
    "name of Windows": (lambda d: d.people[1][1].append("C:\\a.jpg"), "is outside the folder images/"),
    "twice": (lambda d: d.people[1][1].append(d.people[0][0][0]), "is already listed as pid 0, camera 0"),
    "few cameras": (lambda d: d.meta.update(num_cameras=1), "num_cameras is 1, but identities has 2 cameras"),
    "cameras are text": (lambda d: d.meta.update(num_cameras="2"), "num_cameras is '2'"),
    "missing image": (lambda d: d.people[1][1].append("gone.jpg"), r"gone.jpg is listed but .* \(1 missing in all"),
    "splits is an object": (lambda d: d.files.update(splits={"a": 1}), "holds an object, expected a list"),
    "split is a list": (lambda d: d.files.update(splits=[[1]]), "entry 0 is a list, expected an object"),
    "no trainval": (lambda d: d.split.pop("trainval"), "entry 0, trainval is missing"),
    "pid is text": (lambda d: d.split["query"].append("3"), "entry 0, query: '3' is not a pid"),
    "pid is true": (lambda d: d.split["query"].append(True), "entry 0, query: True is not a pid"),
    "pid out of range": (lambda d: d.split["gallery"].append(9), "gallery: pid 9 .* has identities 0 to 4"),
    "overlap": (lambda d: d.split["trainval"].append(4), "entry 0: pids in both trainval and the test lists: 4;"),
    "empty test": (lambda d: d.files.update(test=[]), "test.json is an empty list; expected one object"),
    "test row": (lambda d: d.test["query"].append(["a.jpg", 3]), r"query\[1\]: \['a.jpg', 3\] is not \[file, pid"),
    "test file unknown": (
        lambda d: d.test["query"].append(["a.jpg", 3, 0]),
        r"test.json: query\[1\]: 'a.jpg' is not among the identities of meta.json",
    ),
    "test file up": (lambda d: d.test["query"].append(["../a", 3, 0]), r"query\[1\]: '../a' is outside the folder"),
    "test pid": (lambda d: d.test["query"][0].__setitem__(1, 4), "has pid 4, camera 0, but pid 3, camera 0"),
    "gallery is a number": (lambda d: d.test.update(gallery=3), "test.json: gallery is 3, expected a list"),
    "no query": (lambda d: d.test.update(query=[]), "split 0 has no query images"),
    "half official": (half_official, "meta.json: gallery is missing, expected a list"),
    "distractors": (lambda d: d.meta.update(distractors=0), "distractors is 0, expected a list of pids"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_names_file_and_entry(tmp_path, case):
    change, message = BROKEN[case]
    files = write_tiny(tmp_path / "d")
    read_dataset(tmp_path / "d")
    change(parts(files))
    (tmp_path / "d/test.json").unlink()
    save(tmp_path / "d", files)
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(tmp_path / "d")
    assert str(tmp_path / "d") in str(caught.value)


def test_a_report_that_returns_gets_every_defect(tmp_path):
    files = write_tiny(tmp_path / "d")
    for case in ("name up", "pid out of range", "missing image", "test row"):
        BROKEN[case][0](parts(files))
    save(tmp_path / "d", files)
    reported = []
    dataset = read_dataset(tmp_path / "d", report=reported.append)
    assert len(reported) == 4 and len(dataset.trainval) == 12


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"identities": [[["a.jp', r"meta.json: line 1, column \d+: not valid JSON .*may be cut short"),
        (b"", r"meta.json: line 1, column 1: not valid JSON"),
        (b"\xff\xfe\x00", r"meta.json cannot be read as JSON"),
        (b"[" * 100_000, r"meta.json cannot be read as JSON|not valid JSON"),
        (b"[1]", r"meta.json holds a list, expected an object"),
    ],
)
def test_broken_json(tmp_path, content, message):
    write_tiny(tmp_path / "d")
    (tmp_path / "d/meta.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "d")


def test_missing_files_are_missing_input(tmp_path):
    write_tiny(tmp_path / "d")
    (tmp_path / "d/splits.json").unlink()
    with pytest.raises(MissingInput, match=r"splits.json does not exist; a dataset folder has"):
        read_dataset(tmp_path / "d")


def test_images_may_be_links(tmp_path):
    write_tiny(tmp_path / "d")
    image = sorted((tmp_path / "d/images").iterdir())[0]
    image.rename(tmp_path / "mine.jpg")
    image.symlink_to(tmp_path / "mine.jpg")
    assert len(read_dataset(tmp_path / "d").trainval) == 12


def test_open_reid_sample_of_market(shared, tmp_path):
    """The real Open-ReID lists: 3,368 / 15,913 with them, 16,483 / 19,281 (FD-GAN) without."""
    source = shared / "data/lists/openreid_market1501"
    meta = json.loads((source / "meta.json").read_text(encoding="utf-8"))
    (tmp_path / "images").mkdir()
    for name in (n for cameras in meta["identities"] for some in cameras for n in some):
        (tmp_path / "images" / name).touch()
    save(tmp_path, {"meta": meta, "splits": json.loads((source / "splits.json").read_text(encoding="utf-8"))})
    official = read_dataset(tmp_path)
    assert (len(official.trainval), len(official.query), len(official.gallery)) == (12_936, 3_368, 15_913)
    assert official.distractors == {0} and sum(i.pid == 0 for i in official.gallery) == 2_798
    assert [len(part) for part in official.hold_out(100)] == [11_509, 1_427]
    del meta["query_fnames"], meta["gallery_fnames"]
    save(tmp_path, {"meta": meta})
    everything = read_dataset(tmp_path)
    assert (len(everything.query), len(everything.gallery), everything.protocol) == (16_483, 19_281, ALL_IMAGES)


def test_labels(tmp_path):
    """The user's names are in meta.json; a dataset without them shows numbers."""
    folder = make_dataset(tmp_path / "tiny")
    assert read_dataset(folder).labels.identity(3) == "3"
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    meta |= {"labels": {"identities": ["anna", "bob"], "cameras": ["Door 2"]}, "sources": {"a.jpg": "IMG 1.jpg"}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    labels = read_dataset(folder).labels
    assert [labels.identity(pid) for pid in (1, 2)] == ["bob", "2"]
    assert [labels.camera(camid) for camid in (0, 1)] == ["Door 2", "1"]
    assert [labels.source(file) for file in ("a.jpg", "b.jpg")] == ["IMG 1.jpg", "b.jpg"]
