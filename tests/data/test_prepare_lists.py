"""CSV and JSON lists of a user's own images: columns, subsets, labels, and what is refused."""

import json

import pytest
from test_prepare import jpeg, write_files
from test_prepare_own import PEOPLE, TEMPLATED, matched, pids, prepared

from reid.errors import InputError, MissingInput


@pytest.fixture(autouse=True)
def infos(caplog):
    caplog.set_level("INFO", "reid")


def write_csv(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "semicolons", "json"])
def test_lists(tmp_path, kind):
    write_files(tmp_path / "photos", TEMPLATED)
    rows = [("photos/" + n, PEOPLE.index(n.split("_")[0]) + 10, n.split("_c")[1][0]) for n in TEMPLATED]
    if kind == "json":
        source = tmp_path / "list.json"
        source.write_text(
            json.dumps([{"path": p, "pid": who, "camid": int(c)} for p, who, c in rows]), encoding="utf-8"
        )
    else:
        source, sign = tmp_path / "list.csv", ";" if kind == "semicolons" else ","
        lines = [sign.join(("path", "pid", "camid")), *(sign.join(map(str, row)) for row in rows)]
        source.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    dataset = prepared(source, tmp_path / "sets", link=True)
    assert pids(dataset.trainval) | pids(dataset.query) == set(range(10, 16))  # small whole numbers stay
    assert dataset.num_cameras == 2 and matched(dataset) and (tmp_path / "sets/mine/images").is_dir()


def test_a_list_without_cameras_and_with_pid_0(tmp_path):
    write_files(tmp_path, [f"{i}.jpg" for i in range(8)])
    rows = [{"path": f"{i}.jpg", "pid": i // 2} for i in range(8)]
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    dataset = prepared(tmp_path / "list.json", tmp_path / "sets")
    assert pids(dataset.trainval) | pids(dataset.query) == {0, 1, 2, 3} and dataset.distractors == frozenset()


SPLIT = [  # path, identity, camera, subset
    *((f"{who}_c{cam}_0.jpg", who, cam, "train") for who in ("anna", "bert") for cam in (1, 3)),
    ("cem_c1_0.jpg", "cem", 1, "query"),
    ("cem_c3_0.jpg", "cem", 3, "gallery"),
    ("dora_c1_0.jpg", "dora", 1, "gallery"),
]


@pytest.mark.parametrize(
    "columns, kind",
    [
        ("path,pid,camid,subset", "csv"),
        ("image path,Identity,CAM_ID,split", "csv"),
        ("file, label, camera, set", "csv"),
        ("filename,id,cam,Split", "json"),
    ],
)
def test_a_column_gives_the_split(tmp_path, columns, kind):
    write_files(tmp_path, TEMPLATED)
    source = tmp_path / f"list.{kind}"
    names = [name.strip() for name in columns.split(",")]
    if kind == "json":
        source.write_text(json.dumps([dict(zip(names, row)) for row in SPLIT]), encoding="utf-8")
    else:
        blank = " " if ", " in columns else ""
        write_csv(source, [columns, *(f",{blank}".join(map(str, row)) for row in SPLIT)])
    dataset = prepared(source, tmp_path / "sets")
    labels = dataset.labels

    def shown(images):
        return sorted((labels.identity(i.pid), labels.camera(i.camid)) for i in images)

    assert shown(dataset.trainval) == [("anna", "1"), ("anna", "3"), ("bert", "1"), ("bert", "3")]
    assert shown(dataset.query) == [("cem", "1")]
    assert shown(dataset.gallery) == [("cem", "3"), ("dora", "1")]
    assert [labels.identity(pid) for pid in dataset.distractors] == ["dora"]
    assert dataset.protocol == "test.json: split as given"


def test_columns_that_are_not_used_or_not_clear_are_named(tmp_path, caplog):
    write_files(tmp_path, TEMPLATED)
    lines = [f"{name},{name.split('_')[0]},{i}" for i, name in enumerate(TEMPLATED)]
    prepared(write_csv(tmp_path / "list.csv", ["path,pid,age", *lines]), tmp_path / "sets")
    assert "columns that are not used: age" in caplog.text
    prepared(write_csv(tmp_path / "list.csv", ["path,pid,id", *lines]), tmp_path / "sets", name="exact")
    assert "columns that are not used: id" in caplog.text
    for columns, message in (
        ("path,label,id", r"the columns label, id can all be the pid; keep one"),
        ("a.jpg,anna,1", r"list.csv has no column path and no column pid; its columns are: a.jpg, anna, 1. Expected"),
        ("path,who,age", r"has no column pid; its columns are: path, who, age"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(write_csv(tmp_path / "list.csv", [columns, *lines]), tmp_path / "other")


@pytest.mark.parametrize("value", ["", "trian", "0"])
def test_every_value_of_subset_is_understood_or_refused(tmp_path, value):
    write_files(tmp_path, TEMPLATED)
    lines = [f"{path},{who},{subset}" for path, who, _, subset in SPLIT]
    lines[2] = f"bert_c1_0.jpg,bert,{value}"
    with pytest.raises(InputError, match=r"line 4: bert_c1_0.jpg has the split .*; expected train, val, query"):
        prepared(write_csv(tmp_path / "list.csv", ["path,pid,split", *lines]), tmp_path / "sets")


def test_rows_that_repeat_an_image(tmp_path, caplog):
    """A repeated row counts once; an image has one identity; it can be a query and in the gallery."""
    write_files(tmp_path, TEMPLATED)
    lines = ["path,pid,camid,subset", *(",".join(map(str, row)) for row in SPLIT)]
    lines += ["./dora_c1_0.jpg,dora,1,gallery", "cem_c1_0.jpg,cem,1,gallery"]
    dataset = prepared(write_csv(tmp_path / "list.csv", lines), tmp_path / "sets")
    assert "dropped: 1 rows that repeat another row" in caplog.text
    assert len(dataset.gallery) == 3 and dataset.query[0] in dataset.gallery  # same camera: junk for itself
    bare = [line.replace(",1,", ",").replace(",3,", ",") for line in lines]
    bare[0] = "path,pid,subset"
    with pytest.raises(InputError, match=r"images in both query and gallery: cem_c1_0.jpg; without cameras"):
        prepared(write_csv(tmp_path / "list.csv", bare), tmp_path / "other")
    with pytest.raises(InputError, match=r"line 11: cem_c3_0.jpg has other labels in an earlier .* 'cem', cam"):
        prepared(write_csv(tmp_path / "list.csv", [*lines, "cem_c3_0.jpg,fay,3,gallery"]), tmp_path / "other")


def test_a_list_of_windows(tmp_path):
    write_files(tmp_path / "photos", TEMPLATED)
    lines = [rf"photos\{name},{name.split('_')[0]}" for name in TEMPLATED]
    dataset = prepared(write_csv(tmp_path / "list.csv", ["path,pid", *lines]), tmp_path / "sets")
    assert set(dataset.labels.sources.values()) == {f"photos/{name}" for name in TEMPLATED}


def test_bad_lists_name_each_line(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    source = write_csv(tmp_path / "list.csv", ["path,pid", "a.jpg,1", "gone.jpg,2", "a.jpg,", "a.jpg,1,2"])
    with pytest.raises(
        InputError,
        match=r"3 of 4 entries .*\n  line 3: .*gone.jpg does not exist\n  line 4: .*no path or no pid\n  lin",
    ):
        prepared(source, tmp_path / "sets")
    source.write_bytes(b"path,pid\n\xff\xfe.jpg,1\n")
    with pytest.raises(InputError, match=r"list.csv cannot be read as CSV: .*; save it as UTF-8"):
        prepared(source, tmp_path / "sets")
    (tmp_path / "list.json").write_text('["a.jpg", {"path": "a.jpg", "pid": ""}]', encoding="utf-8")
    with pytest.raises(InputError, match=r"2 of 2 entries .*\n  entry 0: .*\n  entry 1: "):
        prepared(tmp_path / "list.json", tmp_path / "sets")
    with pytest.raises(InputError, match=r"--template is for folders and archives"):
        prepared(source, tmp_path / "sets", template="{pid}.jpg")
    with pytest.raises(MissingInput, match=r"--source .*gone.csv does not exist"):
        prepared(tmp_path / "gone.csv", tmp_path / "sets")
