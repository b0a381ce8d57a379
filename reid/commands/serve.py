"""python -m reid serve: search a gallery over HTTP, with a page."""

import os
import socket
from pathlib import Path

from reid.commands.extract import open_extractor
from reid.commands.flags import add_flags, add_gallery_flags, check_counts
from reid.errors import InputError
from reid.gallery.address import address_of, open_gallery
from reid.signals import handled

LONG = 100_000  # images, for --engine auto: a server is worth the preparation of an engine
LIMITS = {  # flag: default, meaning
    "max_body": (32, "MiB of a request"),
    "max_pixels": (25_000_000, "pixels of an image"),
    "max_images": (16, "images of a request"),
    "max_seconds": (30, "seconds of a request"),
    "max_requests": (64, "requests at the same time"),
    "queue": (128, "images that wait for the model"),
}


def add_arguments(parser) -> None:
    add_gallery_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="listen on this address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="listen on this port (default 8000)")
    parser.add_argument("--token_file", metavar="FILE", help="require the token in this file (default: $RRID_TOKEN)")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the images of added entries here (default: keep none)")
    parser.add_argument("--root", help="look for the entries' images here (default: the gallery's folder)")
    parser.add_argument("--threshold", type=float, help="largest squared distance of a match, for the page")
    parser.add_argument("--no_flip", action="store_true", help="do not average with mirror images")
    limits = parser.add_argument_group("limits")
    for name, (default, text) in LIMITS.items():
        help_text = f"refuse more {text} (default {default})"
        limits.add_argument(f"--{name}", type=int, default=default, metavar="N", help=help_text)
    add_flags(parser, "gallery", needs_weights=True)


def main(arguments) -> int:
    a = arguments
    a.gallery = address_of(a.gallery, a.store)
    try:
        from reid.serve.app import make_server
        from reid.serve.guard import check_token
        from reid.serve.service import Limits, Service, Setup
    except ImportError as e:
        raise InputError(f'serve needs {e.name}: pip install -e ".[serve]"') from e
    token = read_token(a.token_file)
    check_token(a.host, token)
    check_numbers(a)
    limits = Limits(
        body=a.max_body << 20,
        pixels=a.max_pixels,
        images=a.max_images,
        seconds=a.max_seconds,
        queue=a.queue,
        requests=a.max_requests,
    )
    gallery = open_gallery(a.gallery)
    setup = Setup(limits, root_of(a), Path(a.keep) if a.keep else None, a.threshold)
    service = Service(open_extractor(a, LONG), gallery, setup)
    listening = listen(a.host, a.port)
    place = f"[{a.host}]" if ":" in a.host else a.host
    url = f"http://{place}:{listening.getsockname()[1]}"
    print(f"{a.gallery} ({len(gallery):,} entries) is served at {url}; Ctrl-C stops it", flush=True)
    with handled(lambda number, frame: None):  # uvicorn handles stop signals, then raises them again
        make_server(service, token).run(sockets=[listening])
    return 0


def read_token(path: str | None) -> str | None:
    """The token of the file, or of the environment. Raises InputError."""
    if path is None:
        return os.environ.get("RRID_TOKEN")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"--token_file {path} cannot be read: {e}") from e


def check_numbers(a) -> None:
    """Raises InputError for numbers that cannot be used."""
    check_counts(a, *LIMITS)
    if a.queue < a.max_images:
        raise InputError(f"--queue {a.queue} is smaller than --max_images {a.max_images}; give at least as much")
    if a.threshold is not None and not 0 <= a.threshold <= 4:
        raise InputError(f"--threshold {a.threshold}: expected a squared distance from 0 to 4")
    if not 0 <= a.port < 65536:
        raise InputError(f"--port {a.port}: expected a number from 0 to 65535")


def root_of(a) -> Path | None:
    """The folder of the entries' images: --root, else that of a gallery file. Raises InputError."""
    if a.root and not Path(a.root).is_dir():
        raise InputError(f"--root {a.root}: no such folder")
    if a.root:
        return Path(a.root)
    return Path(a.gallery).parent if Path(a.gallery).is_file() else None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as e:
        raise InputError(f"--host {host} --port {port} cannot be used: {e.strerror or e}; give another") from e
