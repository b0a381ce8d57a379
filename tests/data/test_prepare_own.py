"""A user's own images: folders, templates, the drawn split, labels, and preparing again."""

from collections import Counter
from pathlib import PurePosixPath

import pytest
from test_prepare import jpeg, write_files, write_zip

from reid.__main__ import main
from reid.data.check import check_lists
from reid.data.prepare import prepare_own
from reid.data.prepare.own import OwnImages
from reid.data.prepare.plan import Row
from reid.data.prepare.split import Drawing, plan_own
from reid.data.prepare.template import as_template
from reid.errors import InputError

PEOPLE = ("anna", "bert", "cem", "dora", "emil", "fay")
TEMPLATED = [f"{who}_c{cam}_{i}.jpg" for who in PEOPLE for cam in (1, 3) for i in (0, 1)]


@pytest.fixture(autouse=True)
def infos(caplog):
    caplog.set_level("INFO", "reid")


def prepared(source, sets, name="mine", link=False, **settings):
    """The dataset that prepare_own makes. settings: of OwnImages and of Drawing."""
    drawing = {key: settings.pop(key) for key in ("test_share", "seed", "test_only") if key in settings}
    return prepare_own(name, OwnImages(source=source, drawing=Drawing(**drawing), **settings), sets, link)


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


def test_every_query_keeps_a_match_however_few_the_images():
    """1 to 3 images over 1 to 3 cameras. Identities of one camera: training; with one image: distractors."""
    rows = [
        Row(f"{pid}_{cam}_{i}", str(pid), str(cam))
        for pid in range(40)
        for cam in range(pid % 3 + 1)
        for i in range(1 + (pid // 3 + cam) % 3)
    ]
    count = Counter(row.pid for row in rows)
    for seed in range(5):
        drawn, _ = plan_own(rows, Drawing(0.9, seed))
        split, images = drawn.splits[0], drawn.images
        assert sorted(split.trainval + split.query + split.gallery) == list(range(len(rows)))
        train, query, gallery = ({images[i][1] for i in some} for some in split.subsets.values())
        for i in split.query:
            assert any(images[g][1] == images[i][1] and images[g][2] != images[i][2] for g in split.gallery)
        assert len(query) == round(0.9 * sum(pid % 3 > 0 for pid in range(40)))
        assert gallery - query == {pid for pid in range(40) if count[str(pid)] == 1}
        assert {pid for pid in range(40) if pid % 3 == 0} - gallery <= train


def test_training_keeps_people_seen_by_two_cameras():
    """40 people seen by two cameras and 40 by one: the test gets half of the first 40."""
    rows = [Row(f"{p}_{i}", f"{p:03}", str(i % 2 if p < 40 else 0)) for p in range(80) for i in range(4)]
    drawn, words = plan_own(rows, Drawing())
    split, images = drawn.splits[0], drawn.images
    train, query, gallery = ({images[i][1] for i in some} for some in split.subsets.values())
    assert len(query) == 20 and query == gallery and query < set(range(40))
    assert train == set(range(80)) - query
    assert "20 of 40 identities with images from two cameras are the test" in words
    assert "40 identities with images from one camera are for training only" in words
    drawn, words = plan_own([*rows, Row("x", "x", "0"), Row("y", "y", "1")], Drawing(test_share=0.99))
    split, images = drawn.splits[0], drawn.images
    assert len({images[i][1] for i in split.query}) == 39  # one stays in training
    assert "2 identities with one image join the gallery as distractors" in words
    assert {images[i][0] for i in split.gallery} >= {"x", "y"}


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
        ("{}/{cam}/{pid:1}{}.jpg", "a/k/7.jpg", ("7", "k")),
        ("{pid:4}{cam:3}.png", "0012003.png", ("0012", "003")),
        ("{pid:4}{cam:3}{}", "0012003_x.png", ("0012", "003")),
        ("{:2}{pid:2}{cam}.png", "xx12a3.png", ("12", "a3")),
    ],
)
def test_templates(template, name, expected):
    found = as_template(template).read(PurePosixPath(name))
    assert (found["pid"], found["cam"]) == expected


@pytest.mark.parametrize(
    "template, problem",
    [
        ("{cam}.jpg", "it has no {pid}"),
        ("{pid}_{pid}", "{pid} occurs twice"),
        ("{pid}_{camera}", "{camera} is not a field"),
        ("{pid", "expected '}' before end of string"),
        ("{0}_{pid}", "{0} is not a field"),
        ("img.jpg", "it has no {pid}"),
        ("{pid}{cam}.jpg", "nothing shows where {pid} ends and {cam} begins"),
        ("{pid}{}.jpg", "nothing shows where {pid} ends and {} begins"),
        ("{pid:d}.jpg", "{pid:d} is not a field"),
        ("{pid!r}.jpg", "{pid!r} is not a field"),
    ],
)
def test_bad_templates_are_explained(template, problem):
    with pytest.raises(InputError, match=r"use \{pid\} once, .* for example") as caught:
        as_template(template)
    assert f"--template {template!r}: {problem}; use" in str(caught.value)


def test_a_template_that_does_not_fit_shows_names_beside_what_was_understood(tmp_path):
    names = ["0001001.png", "0001002.png", "0002001.png", "0003002.png", "00031.png", "0003002.jpg"]
    with pytest.raises(InputError) as caught:
        prepared(write_files(tmp_path / "p", names), tmp_path / "sets", template="{pid:4}{cam:3}.png")
    assert (
        str(caught.value)
        .splitlines()[0]
        .endswith(
            "2 image names are not of the form {pid:4}{cam:3}.png; change the template, or rename or remove the images:"
        )
    )
    assert str(caught.value).splitlines()[1:] == [
        "  0003002.jpg fits '{pid:4}{cam:3}', but '.png' does not follow",
        "  00031.png fits '{pid:4}{cam:3}', but '.png' does not follow",
        "understood:",
        "  0001001.png -> identity '0001', camera '001'",
        "  0001002.png -> identity '0001', camera '002'",
        "  0002001.png -> identity '0002', camera '001'",
    ]


def test_names_of_another_form_are_listed_and_nothing_is_written(tmp_path):
    source = write_files(tmp_path / "photos", [*TEMPLATED, "odd.jpg", "anna/1.jpg"])
    with pytest.raises(InputError, match=r"2 image names are not of the form \{pid\}_c\{cam\}") as caught:
        prepared(source, tmp_path / "sets", template="{pid}_c{cam}_{}.jpg")
    assert "odd.jpg" in str(caught.value) and "anna/1.jpg" in str(caught.value)
    with pytest.raises(InputError, match=r"25 images are in no folder .* expected <identity>/<image>, or give --temp"):
        prepared(source, tmp_path / "sets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no images"):
        prepared(tmp_path / "empty", tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_too_few_identities_and_missing_cameras(tmp_path):
    with pytest.raises(InputError, match=r"2 identities, 2 of them with images from two files: too few"):
        plan_own([Row(f"{p}{i}", p) for p in "ab" for i in range(2)], Drawing())
    with pytest.raises(InputError, match=r"3 identities, 0 of them with images from two cameras.*without cameras"):
        plan_own([Row(f"{p}{i}", p, "1") for p in "abc" for i in range(2)], Drawing())
    with pytest.raises(InputError, match=r"1 of 3 images have no camera, the first: b0"):
        plan_own([Row("a0", "a", "1"), Row("b0", "b"), Row("c0", "c", "2")], Drawing())
    with pytest.raises(InputError, match=r"none of the 2 images can be used: all are junk"):
        plan_own([Row("a0", "-1"), Row("b0", "-1")], Drawing())


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


def test_labels_are_kept(tmp_path):
    names = [f"{who}/IMG {i}.jpg" for who in ("Zoë", "anna", "王伟", "0012") for i in range(2)]
    dataset = prepared(write_files(tmp_path / "p", names), tmp_path / "sets")
    labels = dataset.labels
    assert labels.identities == ("0012", "Zoë", "anna", "王伟") and labels.cameras[0] == "unknown (query)"
    assert dataset.without_cameras and "mine: no cameras, test.json" in str(dataset)
    for image in (*dataset.trainval, *dataset.query, *dataset.gallery):
        source = labels.source(PurePosixPath(image.path).name)
        assert source.startswith(f"{labels.identity(image.pid)}/IMG ")
    rows = [Row(f"{p}{c}{i}", p, c) for p in ("7", "009", "12") for c in ("Camera 012", "Camera 3") for i in (0, 1)]
    plan, _ = plan_own(rows, Drawing())
    assert {pid for _, pid, _ in plan.images} == {7, 9, 12}
    assert [plan.labels.identity(pid) for pid in (7, 9, 12)] == ["7", "009", "12"]
    assert plan.labels.cameras == ["Camera 012", "Camera 3"]


@pytest.mark.parametrize(
    "labels, message",
    [
        (("12", "0012", "7"), r"identities that are the same number or look the same.*\n  '0012' and '12'"),
        (("anna ", "anna", "b"), r"identities with blanks at the ends.*\n  'anna ', beside 'anna'"),
        (("\u3000anna", "b", "c"), r"identities with blanks at the ends"),
        (("caf\u00e9", "cafe\u0301", "b"), r"look the same.*\n  'cafe\\u0301' and 'caf\\xe9'"),
        (("a  b", "a b", "c"), r"look the same.*\n  'a  b' and 'a b'"),
    ],
)
def test_labels_that_look_the_same_are_refused(labels, message):
    rows = [Row(f"{label}{i}", label) for label in labels for i in range(3)]
    with pytest.raises(InputError, match=message):
        plan_own(rows, Drawing())
    rows = [Row(f"{p}{c}{i}", p, c) for p in "abc" for c in labels for i in range(2)]
    with pytest.raises(InputError, match=message.replace("identities", "cameras")):
        plan_own(rows, Drawing())


def test_labels_that_differ_in_letter_case_are_two_with_a_warning(caplog):
    plan, _ = plan_own([Row(f"{p}{i}", p) for p in ("Anna", "anna", "bert") for i in range(3)], Drawing())
    assert {pid for _, pid, _ in plan.images} == {0, 1, 2}
    assert "identities Anna and anna differ in letter case only; they count as 2" in caplog.text


def test_sequences_take_the_place_of_cameras(tmp_path, caplog):
    """Images of one sequence are junk for each other, so a query needs a match from another sequence."""
    names = [f"{who}/s{s}_{i}.jpg" for who in PEOPLE for s in (1, 2) for i in range(3)]
    names += [f"gina/s1_{i}.jpg" for i in range(3)]
    source = write_files(tmp_path / "p", names)
    dataset = prepared(source, tmp_path / "sets", template="{pid}/s{seq}_{}.jpg")
    assert matched(dataset) and dataset.num_cameras == 2 and not dataset.without_cameras
    assert dataset.labels.cameras == ("sequence 1", "sequence 2")
    assert "sequences take the place of cameras" in dataset.protocol
    gina = dataset.labels.identities.index("gina")
    assert gina in pids(dataset.trainval)  # seen in one sequence only
    assert "1 identities with images from one sequence are for training only" in caplog.text
    both = [Row(f"{p}{c}{i}", p, c, str(i)) for p in "abc" for c in "12" for i in range(2)]
    plan, _ = plan_own(both, Drawing())
    assert plan.labels.cameras == ["1", "2"] and "sequences are not used, because cameras are known" in caplog.text
    with pytest.raises(InputError, match=r"1 of 12 images have no sequence, the first: a10"):
        plan_own([row._replace(camera=None, sequence=row.sequence if n else None) for n, row in enumerate(both)],
                 Drawing())  # fmt: skip


def test_levels_of_folders_that_are_not_clear_are_listed(tmp_path):
    names = [f"{cam}/{who}/{i}.jpg" for cam in ("door", "yard") for who in PEOPLE for i in range(2)]
    source = write_files(tmp_path / "p", names)
    with pytest.raises(InputError, match=r"several levels.*\n  level 1: door, yard\n  level 2: anna, bert, cem, dora"):
        prepared(source, tmp_path / "sets")
    dataset = prepared(source, tmp_path / "sets", template="{cam}/{pid}/{}")
    assert dataset.labels.cameras == ("door", "yard")


def test_preparing_the_same_again_changes_nothing(tmp_path, caplog):
    source = write_files(tmp_path / "photos", TEMPLATED)
    settings = {"template": "{pid}_c{cam}_{}.jpg", "seed": 3}
    first = prepared(source, tmp_path / "sets", **settings)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "sets").rglob("*")}
    source.rename(tmp_path / "moved")
    assert prepared(tmp_path / "moved", tmp_path / "sets", **settings).fingerprint == first.fingerprint
    assert "is already prepared from the same source" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "sets").rglob("*")}
    assert str(tmp_path) not in (tmp_path / "sets/mine/meta.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change, line",
    [
        ({"template": "{pid}_c{cam}_{:1}.jpg"}, "template: '{pid}_c{cam}_{}.jpg' then, '{pid}_c{cam}_{:1}.jpg' now"),
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"test_share": 0.3}, "test_share: nothing then, 0.3 now"),
        ({"test_only": True}, "test_only: False then, True now"),
        ({"source": "others"}, "source: 'photos' then, 'others' now\n  content: "),
        ({"source": "fewer"}, "source: 'photos' then, 'fewer' now\n  images: 24 then, 22 now"),
    ],
)
def test_preparing_something_else_under_the_same_name_shows_both(tmp_path, change, line):
    template = "{pid}_c{cam}_{}.jpg"
    prepared(write_files(tmp_path / "photos", TEMPLATED), tmp_path / "sets", template=template)
    write_files(tmp_path / "fewer", TEMPLATED[:-2])
    others = write_files(tmp_path / "others", TEMPLATED)
    (others / TEMPLATED[0]).write_bytes(jpeg() + b"another size")
    settings = {"template": template, "source": "photos", **change}
    with pytest.raises(InputError, match=r"mine was prepared from something else; choose another --name") as caught:
        prepared(tmp_path / settings.pop("source"), tmp_path / "sets", **settings)
    assert f"\n  {line}" in str(caught.value)
