"""The record of an evaluation: its JSON form, its digest, its words, and the folder it gets."""

import json
from dataclasses import fields, replace

import h5py
import pytest

from reid.errors import InputError, MissingInput
from reid.evaluation.record import LATER, UNKNOWN, USUAL, Record, Scoring, differences, folder_for, read_record, words

RECORD = Record(
    dataset="market1501",
    split=0,
    fingerprint="1" * 64,
    content="2" * 64,
    weights="3" * 64,
    h=384,
    w=128,
    flip=True,
    precision="fp32",
    engine="torch",
    covered=0,
    scoring=USUAL,
)
OTHER = {
    "dataset": "cuhk03",
    "split": 3,
    "fingerprint": "4" * 64,
    "content": None,
    "weights": "5" * 64,
    "features": "6" * 64,
    "h": 256,
    "w": 64,
    "flip": False,
    "precision": "bf16",
    "engine": "openvino",
    "calibration": "7" * 64,
    "covered": 2,
    "scoring": None,
}
SCORINGS = {
    "ap": "trapezoid",
    "cmc": "cuhk03",
    "metric": "cosine",
    "rerank": True,
    "query_expansion": 3,
    "cameras": False,
    "multi_query": "mean",
    "tracks": True,
}


def write(folder, record, name="result.json"):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record.to_json())
    if name == "result.json":
        (folder / name).write_text(f'{{"record": {text}}}', encoding="utf-8")
    else:
        with h5py.File(folder / name, "w") as f:
            f.attrs["record"] = text


def test_every_field_makes_another_record():
    assert OTHER.keys() == {f.name for f in fields(Record)} and SCORINGS.keys() == {f.name for f in fields(Scoring)}
    records = [RECORD, *(replace(RECORD, **{k: v}) for k, v in OTHER.items())]
    records += [replace(RECORD, scoring=replace(USUAL, **{k: v})) for k, v in SCORINGS.items()]
    assert len({record.digest for record in records}) == len(records) == 23
    for record in records:
        again = Record.from_json(json.loads(json.dumps(record.to_json())), "x")
        assert again == record and again.digest == record.digest


def test_the_digest_does_not_change():
    """Digests are in folder names and in splits.json."""
    assert UNKNOWN.digest == "827cb4ae4e9737a10b6f8d40788f3763175b1abbc4583f8ec1c3b0cf80cd7bcb"


def test_later_fields_leave_older_records_as_they_were():
    """A result.json without the fields of LATER is read, and its digest is that of the same record today."""
    content = RECORD.to_json()
    assert not LATER.keys() & content["scoring"].keys() and Record.from_json(content, "x") == RECORD
    assert RECORD.digest == "5b740d6a878607685c96d43685c99415f3f6ab921c92254ce3c5e854feb5c464"


@pytest.mark.parametrize("change, message", [
    ({"split": "0"}, "its record has split '0'"),
    ({"split": True}, "its record has split True"),
    ({"flip": 1}, "its record has flip 1"),
    ({"h": 384.0}, "its record has h 384.0"),
    ({"precision": "auto"}, "--precision auto is unknown; choose from fp32, tf32, bf16"),
    ({"more": 1}, "expected a record with dataset, split"),
    ({"scoring": {}}, "expected a record with ap, cmc, metric"),
    ({"scoring": SCORINGS | {"ap": "11 points"}}, "--ap 11 points is unknown"),
    ({"scoring": []}, "but found list"),
])  # fmt: skip
def test_damaged_records_are_refused(tmp_path, change, message):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"record": RECORD.to_json() | change}), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value) and "evaluate again" in str(caught.value)


def test_files_without_a_record(tmp_path):
    path = tmp_path / "result.json"
    for text, message in (
        ('{"map": 1}', "made by an older version, which kept no record; evaluate again"),
        ("[]", "is damaged"),
        ('{"record": {"dataset": "a"}}', "expected a record with dataset, split"),
        ("{", "is damaged"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_record(path)
    with pytest.raises(MissingInput, match="does not exist"):
        read_record(tmp_path / "none.json")
    with h5py.File(tmp_path / "features.h5", "w") as f:
        f.attrs["weights"] = "w"
    with pytest.raises(InputError, match="older version"):
        read_record(tmp_path / "features.h5")
    path.rename(tmp_path / "f.h5")
    with pytest.raises(InputError, match="damaged"):
        read_record(tmp_path / "f.h5")


def test_words_name_settings_that_differ():
    changed = replace(RECORD, **OTHER | {"scoring": Scoring(**SCORINGS)})
    assert words(RECORD, RECORD) == [] == words(UNKNOWN, RECORD) == words(RECORD, UNKNOWN)
    assert words(changed, RECORD) == [
        "split-3",
        "256x64",
        "no_flip",
        "precision-bf16",
        "engine-openvino",
        "occlude-2",
        "ap-trapezoid",
        "cmc-cuhk03",
        "metric-cosine",
        "rerank",
        "query_expansion-3",
        "no_cameras",
        "multi_query-mean",
        "tracks",
    ]
    assert words(RECORD, changed) == [
        "split-0",
        "384x128",
        "flip",
        "precision-fp32",
        "engine-torch",
        "occlude-0",
        "ap-step",
        "cmc-market1501",
        "metric-euclidean",
        "no_rerank",
        "query_expansion-0",
        "cameras",
        "multi_query-none",
        "no_tracks",
    ]
    other = replace(RECORD, precision="bf16", weights="9" * 64)
    assert differences(other, RECORD) == "weights 99999999 instead of 33333333, precision bf16 instead of fp32"


@pytest.mark.parametrize("name", ["result.json", "features.h5", "features.h5.partial"])
def test_two_records_never_share_a_folder(tmp_path, caplog, name):
    caplog.set_level("INFO")
    base = tmp_path / "eval-a"
    records = [RECORD, *(replace(RECORD, **{k: v}) for k, v in OTHER.items() if k != "scoring")]
    places = []
    for record in records:
        place = folder_for(base, record, RECORD)
        write(place, record if name == "result.json" else record.unscored, name)
        places.append(place)
    assert len(set(places)) == len(records)
    assert [p.name for p in places] == [
        "eval-a",
        f"eval-a_{records[1].digest[:8]}",
        "eval-a_split-3",
        *(f"eval-a_{record.digest[:8]}" for record in records[3:7]),
        "eval-a_256x128",
        "eval-a_384x64",
        "eval-a_no_flip",
        "eval-a_precision-bf16",
        "eval-a_engine-openvino",
        f"eval-a_{records[12].digest[:8]}",
        "eval-a_occlude-2",
    ]
    assert [folder_for(base, record, RECORD) for record in records] == places
    said = f"{base} contains another evaluation; this one, with dataset cuhk03 instead of market1501, is written to"
    assert said in caplog.text


def test_the_usual_name_may_be_held_by_another_precision(tmp_path):
    """auto is bf16 on one machine and fp32 on another."""
    base, gpu = tmp_path / "eval-a", replace(RECORD, precision="bf16")
    write(folder_for(base, gpu, gpu), gpu)
    assert folder_for(base, RECORD, RECORD) == tmp_path / "eval-a_precision-fp32"
    write(tmp_path / "eval-a_precision-fp32", replace(RECORD, weights="7" * 64))
    place = folder_for(base, RECORD, RECORD)
    assert place == tmp_path / f"eval-a_{RECORD.digest[:8]}"
    write(place, gpu)
    assert folder_for(base, RECORD, RECORD) == tmp_path / f"eval-a_{RECORD.digest}"


def test_scorings_share_features(tmp_path):
    base, reranked = tmp_path / "eval-a", replace(RECORD, scoring=Scoring(rerank=True))
    write(base, RECORD.unscored, "features.h5")
    assert folder_for(base, RECORD, RECORD) == folder_for(base, RECORD.unscored, RECORD) == base
    assert folder_for(base, reranked, RECORD) == tmp_path / "eval-a_rerank"
    write(base, RECORD)
    assert folder_for(base, RECORD.unscored, RECORD) == base
    assert folder_for(base, reranked, reranked) == tmp_path / "eval-a_rerank"


def test_older_and_damaged_files_are_made_anew(tmp_path):
    (tmp_path / "result.json").write_text('{"map": 0.5}', encoding="utf-8")
    (tmp_path / "features.h5").write_text("damaged", encoding="utf-8")
    assert folder_for(tmp_path, RECORD, RECORD) == tmp_path
