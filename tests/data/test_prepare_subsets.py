"""The user's own split: subset folders, {subset}, --train and --query, completed and test-only sets."""

import json

import pytest
from test_prepare import MARKET, names_only, write_files, write_zip
from test_prepare_own import matched, pids, prepared

from reid.__main__ import main
from reid.data.check import check_lists
from reid.data.prepare import open_dataset
from reid.data.prepare.known import find_raw
from reid.data.prepare.layouts import rows_of_folders
from reid.data.prepare.split import Drawing, plan_own
from reid.data.prepare.subsets import subset_of
from reid.data.published import PUBLISHED
from reid.errors import InputError

TRAIN, TEST = ("anna", "bert", "cem"), ("dora", "emil")


@pytest.fixture(autouse=True)
def infos(caplog):
    caplog.set_level("INFO", "reid")


def people(dataset, images) -> set[str]:
    return {dataset.labels.identity(image.pid) for image in images}


def laid_out(train="train", query="query", gallery="gallery") -> list[str]:
    """Three training and two test identities in folders below the given ones."""
    names = [f"{train}/{who}/{i}.jpg" for who in TRAIN for i in range(2)]
    names += [f"{query}/{who}/0.jpg" for who in TEST]
    return names + [f"{gallery}/{who}/{i}.jpg" for who in (*TEST, "fay") for i in (1, 2)]


def assert_as_given(dataset):
    assert people(dataset, dataset.trainval) == set(TRAIN) and len(dataset.trainval) == 6
    assert people(dataset, dataset.query) == set(TEST) and len(dataset.query) == 2
    assert people(dataset, dataset.gallery) == {*TEST, "fay"} and len(dataset.gallery) == 6
    sources = dataset.labels.sources.values()
    assert len(set(sources)) == 14 and dataset.distractors == {i.pid for i in dataset.gallery} - pids(dataset.query)
    assert matched(dataset) and dataset.protocol.startswith("test.json: split as given; no cameras were given")


LAYOUTS = [
    ("train", "query", "gallery"),
    ("bounding_box_train", "query", "bounding_box_test"),
    ("image_train", "image_query", "image_test"),
    ("Train", "QUERY", "Test"),
    ("train_all", "query", "gallery"),
    ("training", "test/query", "test/gallery"),
    ("data/set1/train", "data/set1/query", "data/set1/gallery"),
    ("market/pytorch/train_all", "market/pytorch/query", "market/pytorch/gallery"),
    ("train/images", "query/images", "gallery/images"),
    ("rgb/train", "rgb/query", "rgb/test/A"),
    ("trainval", "probe", "gallery"),
]


@pytest.mark.parametrize("folders", LAYOUTS, ids="-".join)
def test_subset_folders_are_kept_to_the_image(tmp_path, folders):
    dataset = prepared(write_files(tmp_path / "p", laid_out(*folders)), tmp_path / "sets")
    assert_as_given(dataset)
    originals = {dataset.labels.source(image.path.rsplit("images/", 1)[1]) for image in dataset.query}
    assert originals == {f"{folders[1]}/{who}/0.jpg" for who in TEST}


def test_an_archive_with_subset_folders(tmp_path):
    assert_as_given(prepared(write_zip(tmp_path / "p.zip", laid_out()), tmp_path / "sets"))


def test_three_folders(tmp_path, capsys):
    """--train, --query and --gallery may be anywhere, and their names do not matter."""
    write_files(tmp_path / "p", laid_out("a/val", "b/train", "c/x"))
    folders = {"train": "a/val", "query": "b/train", "gallery": "c/x"}
    flags = [part for key, folder in folders.items() for part in (f"--{key}", str(tmp_path / "p" / folder))]
    sets = ["--dataset_path", str(tmp_path / "sets")]
    assert main(["prepare", "folder", "--name", "mine", "--images", "link", *flags, *sets]) == 0
    dataset = open_dataset("mine", tmp_path / "sets")
    assert_as_given(dataset)
    assert "query/dora/0.jpg" in dataset.labels.sources.values()
    for wrong, message in (
        (flags, "need --name"),
        ([*flags, "--name", "b", "--source", "x"], "give either --source, or the folders"),
        (["--name", "b", "--train", str(tmp_path / "gone"), *flags[2:]], "gone is not a folder"),
        (["--name", "b", *flags[:2]], "A test needs query and gallery"),
    ):
        assert main(["prepare", "folder", *wrong, *sets]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "template, name",
    [
        ("{subset}_{pid}_{}.jpg", "p/{}_{}_{}.jpg"),
        ("{subset}/x/{pid}_{}.jpg", "p/{}/x/{}_{}.jpg"),
        ("{pid}/{subset}/{}.jpg", "p/{1}/{0}/{2}.jpg"),
        ("{pid}_{}.jpg", "{}/x/{}_{}.jpg"),
        ("x/{pid}_{}.jpg", "{}/x/{}_{}.jpg"),
    ],
)
def test_templates_with_subsets(tmp_path, template, name):
    names = [name.format(*path.removesuffix(".jpg").split("/")) for path in laid_out()]
    assert_as_given(prepared(write_files(tmp_path / "q", names), tmp_path / "sets", template=template))


def test_copies_for_another_program_count_once(tmp_path, caplog):
    """layumi's pytorch/ has train_all/, and its images again in train/ and val/."""
    names = [f"m/pytorch/{name}" for name in laid_out("train_all")]
    names += [name.replace("train_all", "val" if name.endswith("0.jpg") else "train") for name in names[:6]]
    names += ["m/pytorch/multi-query/dora/7.jpg", "m/readme.txt"]
    (tmp_path / "p").mkdir()
    assert_as_given(prepared(write_files(tmp_path / "p", names), tmp_path / "sets"))
    assert "dropped: 6 of train and val, which are in train_all as well" in caplog.text
    assert "dropped: 1 in multi-query/, which is not part of the test" in caplog.text


def test_people_of_val_are_the_last_training_identities(tmp_path, caplog):
    """Numbers would sort the people of val first; --train_set train must hold them out."""
    names = [f"train/{who}/{i}.jpg" for who in (7, 8, 9) for i in (0, 1)]
    names += [f"val/{who}/{i}.jpg" for who in (1, 2) for i in (0, 1)]
    names += [f"test/{who}/{i}.jpg" for who in (3, 4) for i in (0, 1)]
    dataset = prepared(write_files(tmp_path / "p", names), tmp_path / "sets")
    train, val = dataset.hold_out(2)
    assert people(dataset, train) == {"7", "8", "9"} and people(dataset, val) == {"1", "2"}
    assert "its 2 identities are the last ones: --train_set train --num_val 2" in caplog.text
    shared = [f"train/{who}/{i}.jpg" for who in (7, 8) for i in (0, 1)] + ["val/7/9.jpg", *names[-4:]]
    dataset = prepared(write_files(tmp_path / "q", shared), tmp_path / "sets", name="shared")
    assert people(dataset, dataset.trainval) == {"7", "8"} and len(dataset.trainval) == 5
    assert "its identities are those of train" in caplog.text


@pytest.mark.parametrize("test", ["test", "gallery"])
def test_a_test_without_queries_is_completed(tmp_path, caplog, test):
    names = laid_out(query=test, gallery=test)
    dataset = prepared(write_files(tmp_path / "p", [*names, f"{test}/gina/0.jpg"]), tmp_path / "sets", seed=5)
    assert people(dataset, dataset.trainval) == set(TRAIN)
    assert people(dataset, dataset.query) == {*TEST, "fay"} and len(dataset.query) == 3
    assert len(dataset.query) + len(dataset.gallery) == 9 and people(dataset, dataset.query) | {"gina"} == people(
        dataset, dataset.gallery
    )
    assert matched(dataset) and f"3 queries drawn from {test} with seed 5" in dataset.protocol
    assert "no query images were given" in caplog.text


def test_a_test_only_set(tmp_path, capsys):
    """Without training images; given ones are left out, and said."""
    source = write_files(tmp_path / "p", laid_out())
    with pytest.raises(InputError, match=r"no training images: query .2 images., gallery .6.*--test_only"):
        prepared(write_files(tmp_path / "q", laid_out()[6:]), tmp_path / "sets")
    dataset = prepared(tmp_path / "q", tmp_path / "sets", test_only=True)
    assert not dataset.trainval and len(dataset.query) == 2 and len(dataset.gallery) == 6
    command = ["prepare", "folder", "--dataset_path", str(tmp_path / "sets"), "--test_only", "--source"]
    assert main([*command, str(source)]) == 0
    assert main(["check", "p", "--dataset_path", str(tmp_path / "sets")]) == 0
    out = capsys.readouterr().out
    assert "dropped: 6 training images (--test_only)" in out and "trainval               0         0" in out
    drawn = write_files(tmp_path / "d", [f"{who}/{i}.jpg" for who in TRAIN for i in range(3)])
    assert main([*command, str(drawn)]) == 0
    dataset = open_dataset("d", tmp_path / "sets")
    assert [len(images) for images in dataset.subsets.values()] == [0, 3, 6] and matched(dataset)
    assert dataset.protocol.startswith("test.json: test set only; queries drawn with seed 0")


@pytest.mark.parametrize(
    "names, message",
    [
        ([*laid_out(), "more/gina/0.jpg"], r"\(gallery, query, train\) and images outside of them \(1\).*\n  more"),
        ([*laid_out(), "odd.jpg"], r"images outside of them \(1\)"),
        (laid_out("a/train", "a/query", "a/gallery") + laid_out("b/train"), r"several folders for one subset"),
        (laid_out("train/door"), None),
        ([*laid_out("train/door"), "train/yard/anna/1.jpg"], r"several levels.*--template '\{cam\}/\{pid\}/"),
        ([n.replace("anna/", "anna/x/") for n in laid_out()], r"several levels of folders, so it is not clear"),
        (laid_out("train/p", "query/q"), r"gallery, level 1: dora, emil, fay\n  query, level 1: q\n  query"),
        (laid_out(gallery="test") + laid_out(), r"cannot be used: .*test \(6 images\)"),
        (laid_out()[:6], r"split cannot be used: train \(6 images\). A test needs query and gallery"),
        (laid_out()[:8], r"cannot be used: train \(6 images\), query \(2 images\)"),
        ([*laid_out(), "train/dora/9.jpg"], r"pids in both training and test: dora; remove them"),
        ([n.replace("query/", "query/no-") for n in laid_out()], r"none of the 2 queries has a gallery image of its"),
        ([f"{who}/{part}/0.jpg" for who in TEST for part in ("train", "test")], r"several folders for one subset"),
        (["train/0001_c1s1_000_00.jpg", "test/0002_c1s1_000_00.jpg"], r"those of Market-1501: use --layout market"),
    ],
)  # fmt: skip
def test_folders_that_are_not_clear_are_listed(tmp_path, names, message):
    source = write_files(tmp_path / "p", names)
    if message is None:
        return assert_as_given(prepared(source, tmp_path / "sets"))
    with pytest.raises(InputError, match=message):
        prepared(source, tmp_path / "sets")
    assert not (tmp_path / "sets").exists()


def test_the_name_of_a_subset_is_never_an_identity(tmp_path):
    names = [f"{part}_{i}.jpg" for part in ("train", "query", "anna") for i in (0, 1)]
    with pytest.raises(InputError, match=r"identities query, train have the name of a subset"):
        prepared(write_files(tmp_path / "p", names), tmp_path / "sets", template="{pid}_{}.jpg")
    with pytest.raises(InputError, match=r"\{subset\} is 'anna'; expected train, val"):
        prepared(tmp_path / "p", tmp_path / "sets", template="{subset}_{pid}.jpg")
    names = ["bounding_box_train", "image_query", "mask_test_v2", "Val", "test-set-gallery", "train_val", "anna", "set"]
    assert [subset_of(name) for name in names] == ["train", "query", "test", "val", "gallery", "train", "", ""]


def test_settings_that_do_nothing_are_refused(tmp_path):
    source = write_files(tmp_path / "p", laid_out())
    with pytest.raises(InputError, match=r"have a split of their own: train .6 images.*leave out --test_share"):
        prepared(source, tmp_path / "sets", test_share=0.5)


OWN_MARKET = [
    *(f"{part}/{pid:04}_c{cam}s1_{i:06}_00.jpg" for part, pid in (("bounding_box_train", 2), ("bounding_box_train", 7),
      ("bounding_box_test", 5)) for cam in (1, 9) for i in (1, 2)),
    "query/0005_c1s1_000003_00.jpg",
    "bounding_box_test/0000_c12s1_000401_03.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "gt_bbox/0002_c1s1_000001_00.jpg",
    "readme.txt",
]  # fmt: skip


def test_the_layout_of_market_with_own_images(tmp_path, caplog):
    """Any counts and cameras; 0000 is a distractor, -1 is junk."""
    source = write_files(tmp_path / "p", OWN_MARKET)
    dataset = prepared(source, tmp_path / "sets", layout="market")
    assert [len(images) for images in dataset.subsets.values()] == [8, 1, 5] and dataset.num_cameras == 3
    assert (pids(dataset.trainval), pids(dataset.query), dataset.distractors) == ({2, 7}, {5}, {0})
    assert dataset.labels.cameras == ("1", "9", "12") and dataset.labels.identity(2) == "0002"
    for line in ("1 junk (identity -1)", "1 in gt_bbox/, which is not", "ignored, not images: 1 .txt (readme.txt)"):
        assert line in caplog.text
    for names, message in (
        ([*OWN_MARKET, "query/0000_c1s1_000003_00.jpg"], r"1 training or query images have pid 0000"),
        ([*OWN_MARKET, "query/anna.jpg"], r"1 image names are not of the form \{pid\}_c\{camera\}_"),
        ([name.rpartition("/")[2] for name in OWN_MARKET], r"has no subset folder; expected bounding_box_train"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(write_files(tmp_path / str(len(names) + len(message)), names), tmp_path / "new", layout="market")
    with pytest.raises(InputError, match=r"--layout market and --template both"):
        prepared(source, tmp_path / "new", layout="market", template="{pid}_{}")


def test_own_images_in_this_layout_are_not_the_published_dataset(tmp_path, monkeypatch):
    """A folder in datasets/ with the layout of Market-1501 is the published set if it has its counts."""
    own = write_files(tmp_path / "shop", OWN_MARKET)
    assert find_raw("market1501", tmp_path) is None
    monkeypatch.setitem(PUBLISHED, "market1501", {"trainval": (1, 2), "query": (1, 1), "gallery": (2, 2)})
    published = write_files(tmp_path / "unpacked", MARKET)
    assert find_raw("market1501", tmp_path) == published
    own.rename(tmp_path / "supermarket")  # comes first, and has the word in its name
    published.rename(tmp_path / "the market")
    assert find_raw("market1501", tmp_path) == tmp_path / "the market"
    dataset = prepared(tmp_path / "supermarket", tmp_path, name="supermarket", layout="market")
    assert len(dataset.trainval) == 8
    again = prepared(tmp_path / "supermarket", tmp_path, name="supermarket", layout="market")
    assert again.fingerprint == dataset.fingerprint
    assert check_lists(dataset) == []


def test_evaluate_needs_no_training_images(tmp_path, weights, capsys):
    source = write_files(tmp_path / "q", laid_out()[6:])
    sets = ["--dataset_path", str(tmp_path / "sets")]
    assert main(["prepare", "folder", "--source", str(source), "--test_only", *sets]) == 0
    command = ["evaluate", "--weights", str(weights), "--exp_dir", str(tmp_path / "logs"), "--num_workers", "0"]
    assert main([*command, "--dataset_type", "q", "--device", "cpu", *sets]) == 0
    result = json.loads((tmp_path / "logs/q/eval-weights/result.json").read_text(encoding="utf-8"))
    assert (result["n_query"], result["n_valid"], result["n_gallery"]) == (2, 2, 6)
    assert main(["train", "--dataset_type", "q", "--pretrained", "none", *sets]) == 2
    assert "no training images; it can only be evaluated" in capsys.readouterr().err


@pytest.mark.parametrize("name, file", [("market1501", "market1501"), ("dukemtmc", "dukeMTMC")])
def test_real_names_give_the_published_counts(shared, name, file):
    lists = [shared / f"data/lists/triplet-reid/{file}_{part}.csv" for part in ("train", "query", "test")]
    names = [line.split(",")[1] for path in lists for line in path.read_text(encoding="utf-8").splitlines()]
    found = rows_of_folders(names_only(f"{file}/{n}" for n in names), layout="market")
    plan, _ = plan_own(found.rows, Drawing())
    assert plan.counts() == PUBLISHED[name]
