"""Rows of the images of a folder or archive: by folders, by a template, or by the names of Market-1501."""

from collections import defaultdict
from pathlib import PurePosixPath

from reid.data.folders import IMAGES, is_image, left_out
from reid.data.messages import indented, shortened
from reid.data.prepare import market
from reid.data.prepare.archive import Source
from reid.data.prepare.plan import JUNK, Row, Rows
from reid.data.prepare.subsets import SEEN, Place, locate, subset_of
from reid.data.prepare.template import Template, as_template, common_depth, read_names
from reid.errors import InputError

LAYOUTS = ("market",)
MARKET = Template(
    "{pid}_c{camera}_... (--layout market)",
    (("{pid}", r"(?P<pid>-0*1|\d+)"), ("_c{camera}", r"_c(?P<cam>\d+)(?:s\d+)?"), ("_...", r"_.+")),
)


def rows_of_folders(source: Source, template: str = "", layout: str = "", nested: bool = True) -> Rows:
    """The images of a source, with the labels of their paths.

    template: matched against the file name, or against the path if it contains '/'; without
    one the folder of an image is its identity. layout: "market" for names of Market-1501.
    Folders named after a subset give the subset, unless the template has {subset}; nested:
    whether one of them can be inside another. Raises InputError for what is not understood.
    """
    names = [name for name in source.sizes if is_image(name)]
    result = Rows([], source, [name for name in source.sizes if not is_image(name)])
    if not names:
        found = f"; found {left_out(result.ignored)}" if result.ignored else ""
        raise InputError(f"{source.path} has no images ({', '.join(IMAGES)}){found}")
    form = as_template(template) if template else None
    if form and form.with_subset:
        paths = {name: PurePosixPath(name) for name in names}
        result.rows = [with_subset(row) for row in read_names(form, paths, str(source.path))]
    else:
        places, result.dropped = locate(source, names, nested)
        rows = rows_of_places(source, places, MARKET if layout else form)
        rows = of_market(source, rows, places) if layout else rows
        result.rows = [row._replace(subset=places[row.name].subset or None) for row in rows]
    if wrong := sorted({row.pid for row in result.rows if subset_of(row.pid)}):
        raise InputError(
            f"{source.path}: identities {shortened(wrong)} have the name of a subset, which is never an identity; "
            "use {subset} in --template, or rename them"
        )
    return result


def with_subset(row: Row) -> Row:
    """The row with the usual name of its subset."""
    if subset := subset_of(row.subset or ""):
        return row._replace(subset=subset)
    raise InputError(f"{row.name}: {{subset}} is {row.subset!r}; expected {SEEN}")


def rows_of_places(source: Source, places: dict[str, Place], form: Template | None) -> list[Row]:
    """The rows of a template, or of one folder per identity. Both can leave out folders around a whole subset."""
    flat = [name for name, place in places.items() if len(place.below.parts) == 1]
    if flat and not form:
        raise InputError(f"{source.path}: {len(flat):,} images are in no folder of an identity{hint(flat)}")
    subsets: dict[str, dict[str, PurePosixPath]] = defaultdict(dict)
    for name, place in places.items():
        subsets[place.subset][name] = place.below
    if form:
        where = {subset: f"{source.path}{f' ({subset})' if subset else ''}" for subset in subsets}
        return [row for subset, paths in subsets.items() for row in read_names(form, paths, where[subset])]
    around = set()  # folders between the subset and the identities
    for paths in subsets.values():
        depths = {len(path.parts) - 2 for path in paths.values()}
        around.add(next(iter(paths.values())).parts[: max(depths)])
        if len(depths) > 1 or common_depth([*paths.values()]) < max(depths) or len(around - {()}) > 1:
            raise unclear(source, subsets)
    return [Row(name, place.below.parts[-2]) for name, place in places.items()]


def hint(flat: list[str]) -> str:
    if all(market.NAME.fullmatch(PurePosixPath(name).name) for name in flat):
        return "; their names are those of Market-1501: use --layout market" + indented(flat, 3)
    return "; expected <identity>/<image>, or give --template, for example '{pid}_c{cam}_{}.jpg'" + indented(flat)


def unclear(source: Source, subsets: dict[str, dict[str, PurePosixPath]]) -> InputError:
    """The error for several levels of folders, with the names of each level."""
    levels: dict[str, set[str]] = defaultdict(set)
    for subset, paths in subsets.items():
        for path in paths.values():
            for level, folder in enumerate(path.parts[:-1], 1):
                levels[f"{subset + ', ' if subset else ''}level {level}"].add(folder)
    lines = [f"{level}: {shortened(sorted(names), 8)}" for level, names in levels.items()]
    return InputError(
        f"{source.path}: there are several levels of folders, so it is not clear which is the identity; give a "
        "template for them, for example --template '{cam}/{pid}/{}' or '{pid}/{}/{}'; "
        f"found:{indented(lines)}"
    )


def of_market(source: Source, rows: list[Row], places: dict[str, Place]) -> list[Row]:
    """Rows of names like 0002_c1s1_000451_03.jpg: -1 is junk, and 0000 in the gallery a distractor."""
    if not any(place.subset for place in places.values()):
        raise market.missing_part(source, "subset folder", [*market.FOLDERS.values(), "or train, query, gallery"])
    if zeros := [r.name for r in rows if int(r.pid) == 0 and places[r.name].subset in ("train", "val", "query")]:
        raise InputError(
            f"{source.path}: {len(zeros):,} training or query images have pid 0000, which in Market-1501 is a "
            "distractor of the gallery; give this identity another number, or use --template "
            f"'{{pid}}_c{{cam:1}}{{}}' instead of --layout market:{indented(zeros, 3)}"
        )
    return [row._replace(pid=JUNK) if row.pid.startswith("-") else row for row in rows]
