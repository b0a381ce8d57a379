"""A user's own images: folders, templates, lists, the drawn split and the messages."""

import json

import pytest
from test_prepare import jpeg, write_files, write_zip

from reid.__main__ import main
from reid.data.check import check_lists
from reid.data.prepare import prepare_own
from reid.data.prepare.own import OwnImages, Row, as_pattern
from reid.data.prepare.split import plan_own
from reid.errors import InputError, MissingInput

PEOPLE = ("anna", "bert", "cem", "dora", "emil", "fay")
TEMPLATED = [f"{who}_c{cam}_{i}.jpg" for who in PEOPLE for cam in (1, 3) for i in (0, 1)]


@pytest.fixture(autouse=True)
def infos(caplog):
    caplog.set_level("INFO", "reid")


def prepared(source, sets, name="mine", link=False, **settings):
    return prepare_own(name, OwnImages(source=source, **settings), sets, link)


def matched(dataset) -> bool:
    """Every query has a gallery image of its identity from another camera."""
    return all(any(g.pid == q.pid and g.camid != q.camid for g in dataset.gallery) for q in dataset.query)


def pids(images) -> set[int]:
    return {image.pid for image in images}


def test_one_folder_an_identity_without_cameras(tmp_path, caplog):
    names = [f"{who}/{i}.JPG" for who in PEOPLE for i in range(3)] + ["anna/Thumbs.db"]
    dataset = prepared(write_files(tmp_path / "photos", names), tmp_path / "sets")
    out = caplog.text
    assert "understood: 18 images of 6 identities; no cameras were given" in out
    assert "  anna/0.JPG -> identity 'anna' = pid 0" in out and out.count(" -> identity ") == 3
    assert "ignored, not images: 1 .db (anna/Thumbs.db)" in out
    assert len(pids(dataset.trainval)) == 3 and len(pids(dataset.query)) == 3
    assert pids(dataset.query) == pids(dataset.gallery) and not pids(dataset.query) & pids(dataset.trainval)
    assert matched(dataset) and (len(dataset.query), len(dataset.gallery)) == (3, 6)
    assert "each query counts as camera 0" in dataset.protocol and "seed 0" in dataset.protocol
    assert check_lists(dataset) == []


def test_a_template_gives_cameras(tmp_path, caplog):
    source = write_files(tmp_path / "photos", TEMPLATED)
    dataset = prepared(source, tmp_path / "sets", template="{pid}_c{cam}_{}.jpg", test_share=0.34)
    assert "  anna_c1_0.jpg -> identity 'anna' = pid 0, camera '1' = 0" in caplog.text
    assert dataset.num_cameras == 2 and len(pids(dataset.query)) == 2 and matched(dataset)
    assert len(dataset.query) == 4  # one of each camera that keeps another image


def test_the_seed_determines_the_split(tmp_path):
    source = write_files(tmp_path / "photos", TEMPLATED)

    def fingerprint(folder, seed):
        dataset = prepared(source, tmp_path / folder, template="{pid}_c{cam}_{}.jpg", seed=seed)
        return dataset.fingerprint

    assert fingerprint("a", 1) == fingerprint("b", 1) != fingerprint("c", 2)


def test_paths_may_carry_the_camera_and_archives_are_read(tmp_path):
    names = [f"photos/{cam}/{who}/{i}.jpg" for who in PEOPLE for cam in ("door", "yard") for i in range(2)]
    source = write_zip(tmp_path / "photos.zip", names)
    dataset = prepared(source, tmp_path / "sets", template="{cam}/{pid}/{}.jpg")
    assert dataset.num_cameras == 2 and len(dataset.trainval) == 12 and matched(dataset)
    source = write_zip(tmp_path / "p.zip", [f"p/{who}/{i}.jpg" for who in PEOPLE for i in (0, 1)])
    plain = prepared(source, tmp_path / "sets", name="plain")
    assert len(pids(plain.trainval)) == 3  # the folder p/ around all of them is not an identity


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


def test_every_query_keeps_a_match_however_few_the_images():
    """1 to 3 images over 1 to 3 cameras: identities with one camera are used for training only."""
    rows = [
        Row(f"{pid}_{cam}_{i}", str(pid), str(cam))
        for pid in range(40)
        for cam in range(pid % 3 + 1)
        for i in range(1 + (pid // 3 + cam) % 3)
    ]
    for seed in range(5):
        drawn, _ = plan_own(rows, 0.9, seed)
        split, images = drawn.splits[0], drawn.images
        assert sorted(split.trainval + split.query + split.gallery) == list(range(len(rows)))
        assert {images[i][1] for i in split.query} == {images[i][1] for i in split.gallery}
        for i in split.query:
            assert any(images[g][1] == images[i][1] and images[g][2] != images[i][2] for g in split.gallery)
        assert {pid for pid in range(40) if pid % 3 == 0} <= {images[i][1] for i in split.trainval}


def test_junk_is_dropped_and_numbers_keep_their_order(tmp_path):
    names = [f"{who}_{i}.jpg" for who in ("7", "10", "9", "-1") for i in (0, 1)]
    dataset = prepared(write_files(tmp_path / "p", names), tmp_path / "sets", template="{pid}_{}.jpg")
    assert pids(dataset.trainval) | pids(dataset.query) == {7, 9, 10}
    large = [f"{who}_{i}.jpg" for who in (100_007, 100_010, 99) for i in (0, 1)]
    dataset = prepared(write_files(tmp_path / "q", large), tmp_path / "sets", name="large", template="{pid}_{}.jpg")
    assert pids(dataset.trainval) | pids(dataset.query) == {0, 1, 2}


@pytest.mark.parametrize(
    "template, name, expected",
    [
        ("{pid}_c{cam}_{}.jpg", "a_b_c2_01.JPG", ("a_b", "2")),
        ("{cam}-{pid}.png", "x-7.png", ("7", "x")),
        ("{}/{cam}/{pid}{}.jpg", "a/k/7.jpg", ("7", "k")),
    ],
)
def test_templates(template, name, expected):
    match = as_pattern(template).fullmatch(name)
    assert (match["pid"], match["cam"]) == expected


@pytest.mark.parametrize("template", ["{cam}.jpg", "{pid}_{pid}", "{pid}_{camera}", "{pid", "{0}_{pid}", "img.jpg"])
def test_bad_templates_are_explained(template):
    with pytest.raises(InputError, match=r"--template .* use \{pid\} once, \{cam\} at most once"):
        as_pattern(template)


def test_names_of_another_form_are_listed_and_nothing_is_written(tmp_path):
    source = write_files(tmp_path / "photos", [*TEMPLATED, "odd.jpg", "anna/1.jpg"])
    with pytest.raises(InputError, match=r"2 image names are not of the form \{pid\}_c\{cam\}") as caught:
        prepared(source, tmp_path / "sets", template="{pid}_c{cam}_{}.jpg")
    assert "odd.jpg" in str(caught.value) and "anna/1.jpg" in str(caught.value)
    with pytest.raises(InputError, match=r"not of the form <identity>/<image> \(or give --template"):
        prepared(source, tmp_path / "sets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no images"):
        prepared(tmp_path / "empty", tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_bad_lists_name_each_line(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    source = tmp_path / "list.csv"
    source.write_text("path,pid\na.jpg,1\ngone.jpg,2\na.jpg,\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"2 of 3 entries .*\n  line 3: .*gone.jpg does not exist\n  line 4: .*no path or"
    ):
        prepared(source, tmp_path / "sets")
    source.write_text("file,person\na.jpg,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"expected path, pid and optionally camid.*\n  line 2: .*\"file\": \"a.jpg\""):
        prepared(source, tmp_path / "sets")
    source.write_bytes(b"path,pid\n\xff\xfe.jpg,1\n")
    with pytest.raises(InputError, match=r"list.csv cannot be read as CSV: .*; save it as UTF-8"):
        prepared(source, tmp_path / "sets")
    (tmp_path / "list.json").write_text('["a.jpg", {"path": "a.jpg"}]', encoding="utf-8")
    with pytest.raises(InputError, match=r"2 of 2 entries .*\n  entry 0: .*\n  entry 1: "):
        prepared(tmp_path / "list.json", tmp_path / "sets")
    with pytest.raises(InputError, match=r"--template is for folders and archives"):
        prepared(source, tmp_path / "sets", template="{pid}.jpg")
    with pytest.raises(MissingInput, match=r"--source .*gone.csv does not exist"):
        prepared(tmp_path / "gone.csv", tmp_path / "sets")


def test_too_few_identities_and_missing_cameras(tmp_path):
    with pytest.raises(InputError, match=r"2 identities, 2 of them with images from two files: too few"):
        plan_own([Row(f"{p}{i}", p) for p in "ab" for i in range(2)], 0.5, 0)
    with pytest.raises(InputError, match=r"3 identities, 0 of them with images from two cameras.*without cameras"):
        plan_own([Row(f"{p}{i}", p, "1") for p in "abc" for i in range(2)], 0.5, 0)
    with pytest.raises(InputError, match=r"1 of 3 images have no camera, the first: b0"):
        plan_own([Row("a0", "a", "1"), Row("b0", "b"), Row("c0", "c", "2")], 0.5, 0)
    with pytest.raises(InputError, match=r"0 identities, 0 of them"):
        plan_own([Row("a0", "-1"), Row("b0", "-1")], 0.5, 0)


def test_the_command(tmp_path, capsys):
    source = write_files(tmp_path / "photos", TEMPLATED)
    sets = str(tmp_path / "sets")
    command = [
        "prepare",
        "folder",
        "--source",
        str(source),
        "--dataset_path",
        sets,
        "--template",
        "{pid}_c{cam}_{}.jpg",
    ]
    assert main([*command, "--images", "link", "--seed", "3"]) == 0  # named after the source
    assert "seed 3" in capsys.readouterr().out and main(["check", "photos", "--dataset_path", sets]) == 0
    for more, message in (
        (["--name", "Market1501"], "is the name of a known dataset"),
        (["--name", "a/b"], "is not a dataset name"),
        (["--name", "b", "--test_share", "1.5"], "--test_share 1.5 is not between 0 and 1"),
    ):
        assert main([*command, *more]) == 2 and message in capsys.readouterr().err
    assert main(["prepare", "folder", "--dataset_path", sets]) == 2
