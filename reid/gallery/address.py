"""Galleries by their address: a file, or milvus:URI#COLLECTION."""

from pathlib import Path

from reid.errors import InputError, MissingInput
from reid.gallery.hdf5 import Gallery
from reid.gallery.milvus import Milvus
from reid.gallery.store import Entries, Fingerprint, Store

PREFIX = "milvus:"


def parts_of(address: str) -> tuple[str, str]:
    """(URI, collection) of milvus:URI#COLLECTION. Raises InputError."""
    uri, _, name = address.removeprefix(PREFIX).rpartition("#")
    if not uri or not name:
        raise InputError(f"{address}: expected milvus:URI#COLLECTION, for example milvus:gallery.db#people")
    return uri, name


def open_gallery(address: str) -> Store:
    """An existing gallery. Raises InputError, MissingInput, StoreUnavailable."""
    return Milvus(*parts_of(address)) if address.startswith(PREFIX) else Gallery(address)


def address_of(gallery: str, store: str | None) -> str:
    """The address that the flags of a command mean: a collection of --store, or an address. Raises InputError."""
    if store and not store.startswith(PREFIX):
        raise InputError(f"--store {store}: expected milvus:URI; leave it out for a gallery file")
    return f"{store}#{gallery}" if store else gallery


def create_gallery(address: str, mark: Fingerprint, entries: Entries, dtype: str = "", index: str = "") -> Store:
    """A new gallery. dtype: of a file (default float32). index: of Milvus (default FLAT). Raises InputError."""
    if address.startswith(PREFIX):
        if dtype:
            raise InputError(f"--dtype {dtype}: Milvus galleries are float32; leave it out")
        return Milvus.create(*parts_of(address), mark, entries, index or "FLAT")
    if index:
        raise InputError(f"--index {index}: a gallery file has no index, its search is exact; leave it out")
    return Gallery.create(address, mark, entries, dtype or "float32")


def find_gallery(address: str) -> Store | None:
    """The gallery, None where there is none yet."""
    try:
        return open_gallery(address)
    except MissingInput:
        return None


def folder_of(address: str) -> Path:
    """The folder to which names of entries are relative: that of the file; for a cluster the current one."""
    if not address.startswith(PREFIX):
        return Path(address).parent
    uri, _ = parts_of(address)
    return Path() if "://" in uri else Path(uri).parent


def work_file(address: str) -> Path:
    """Where descriptors are kept until they are in the gallery, so that an interrupted command can continue."""
    name = parts_of(address)[1] if address.startswith(PREFIX) else Path(address).name
    return folder_of(address) / f".{name}.features.h5"
