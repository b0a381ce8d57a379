"""Searches over HTTP by 1, 8 and 32 clients on this machine, beside the bare Extractor, and the server's memory."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from reid.bench.measure import side_by_side, table
from reid.config import Config
from reid.data.demo import draw
from reid.errors import CheckFailed
from reid.gallery.hdf5 import Gallery
from reid.gallery.store import Entries, Fingerprint
from reid.inference.extractor import Extractor
from reid.models import build_model
from reid.models.weights import save_weights

CLIENTS = (1, 8, 32)
BARE = "bare Extractor, one by one"
PICTURES = 16  # different images
HEAD = '--limit\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
TYPE = {"Content-Type": "multipart/form-data; boundary=limit"}


def run(a) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{i}.jpg" for i in range(PICTURES)]
        for i, path in enumerate(paths):
            draw(i, 0, 0).save(path, quality=95)
        weights = Path(a.weights) if a.weights else random_weights(folder / "weights.pth", a)
        extractor = Extractor(weights)
        gallery = make_gallery(folder / "g.h5", extractor, paths, a.size)
        images = [paths[i % PICTURES] for i in range(a.requests)]
        bodies = [HEAD.encode() + path.read_bytes() + b"\r\n--limit--\r\n" for path in images]
        with server(gallery, weights) as (port, process):
            forms: dict[str, Callable[[], Any]] = {
                BARE: lambda: [extractor([path]) for path in images],
                "bare Extractor, in batches": lambda: extractor(images),
            }
            for count in CLIENTS:
                forms[f"search, {count} clients"] = partial(load, port, bodies, count)
            load(port, bodies, max(CLIENTS))
            first = process.memory_info().rss
            rows = side_by_side(forms, a.repeat)
            last = process.memory_info().rss
    height, width = extractor.size
    yield table(f"{a.requests} searches of {a.size:,} entries, {height}x{width}", rows, BARE)
    for form, row in rows.items():
        line = f"{form}: {a.requests / row.seconds:.1f} images/s"
        if form.startswith("search"):
            middle, late = 1e3 * np.percentile(row.result, [50, 99])
            line += f", p50 {middle:.0f} ms, p99 {late:.0f} ms"
        yield line
    count = a.requests * len(CLIENTS) * a.repeat
    yield f"memory of the server: {first / 2**20:.0f} MiB, after {count:,} more requests {last / 2**20:.0f} MiB"


def random_weights(path: Path, a) -> Path:
    torch.manual_seed(0)
    config = Config(backbone=a.backbone, h=a.h, w=a.w)
    save_weights(path, {"config": config.to_json(), "classes": 0, "state": build_model(config, 0).state_dict()})
    return path


def make_gallery(path: Path, extractor: Extractor, paths: list[Path], size: int) -> Path:
    """The images and random entries, `size` in all."""
    own = extractor(paths)[:size]
    rest = np.random.default_rng(0).standard_normal((size - len(own), own.shape[1]), dtype=np.float32)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    names = [f"{i}.jpg" for i in range(size)]
    mark = Fingerprint(extractor.sha256, f"{extractor.size[0]}x{extractor.size[1]}", extractor.flip)
    Gallery.create(path, mark, Entries(np.concatenate([own, rest]), names, np.arange(size), np.zeros(size, int)))
    return path


@contextmanager
def server(gallery: Path, weights: Path) -> Iterator[tuple[int, psutil.Process]]:
    """(port, process) of a server in a process of its own."""
    command = [sys.executable, "-m", "reid", "serve", str(gallery), "--weights", str(weights)]
    command += ["--engine", "torch", "--device", "cpu", "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "RRID_TOKEN"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            lines = (line for line in process.stdout or () if "127.0.0.1:" in line)
            line = next(lines, None)
            if line is None:
                raise CheckFailed("the server did not start; its reason is above")
            yield int(line.partition("127.0.0.1:")[2].partition(";")[0]), psutil.Process(process.pid)
        finally:
            process.terminate()


def load(port: int, bodies: list[bytes], clients: int) -> list[float]:
    """Seconds of each search, sent by clients that each wait for their answer. Raises CheckFailed."""

    def client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        seconds = []
        for i in range(number, len(bodies), clients):
            start = time.perf_counter()
            connection.request("POST", "/v1/search?top=10", bodies[i], TYPE)
            response = connection.getresponse()
            content = json.loads(response.read())
            seconds.append(time.perf_counter() - start)
            if response.status != 200 or content["answers"][0]["name"] != f"{i % PICTURES}.jpg":
                raise CheckFailed(f"search {i}: expected {i % PICTURES}.jpg, got {content}")
        connection.close()
        return seconds

    with ThreadPoolExecutor(clients) as pool:
        return [s for seconds in pool.map(client, range(clients)) for s in seconds]
