"""The page of the server in a real browser."""

import time
from base64 import b64encode
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image as PILImage
from serve.client import serving

from reid.data.labels import Labels
from reid.gallery.hdf5 import Gallery
from reid.gallery.store import Entries, Fingerprint
from reid.inference.extractor import Extractor
from reid.serve.service import Setup

TOKEN = "a token of some length"
HOSTILE = "<img src=x onerror=alert(1)>"
CARDS = "document.querySelectorAll('.card')"
DROP = """(() => {
  const bytes = Uint8Array.from(atob('%s'), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], 'dropped.png', { type: 'image/png' }));
  const kind = '%s';
  const event = kind === 'paste' ? new ClipboardEvent(kind, { clipboardData: data })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true });
  document.dispatchEvent(event);
})()"""


@pytest.fixture(scope="module")
def extractor(weights):
    return Extractor(weights, num_workers=1)


@pytest.fixture(scope="module")
def gallery(extractor, images, tmp_path_factory):
    """8 images; the label of one identity would be HTML; one image cannot be shown."""
    folder = tmp_path_factory.mktemp("page")
    names = [f"{i}.png" for i in range(8)]
    for name, image in zip(names, images):
        PILImage.open(image).save(folder / name)
    features = extractor([folder / name for name in names])
    (folder / "7.png").unlink()
    pids = np.arange(8) // 2
    entries = Entries(features, names, pids, pids, Labels([HOSTILE, "anna", "bob", "7"], ["gate", "1", "2", "3"]))
    Gallery.create(folder / "g.h5", Fingerprint(extractor.sha256, "64x32", True), entries)
    return folder / "g.h5"


def wait(browser, true: str) -> None:
    until = time.monotonic() + 20
    while not browser.run(true):
        assert time.monotonic() < until, (true, browser.run("document.body.innerText"))
        time.sleep(0.05)


def choose(browser, file, field: str = "#file") -> None:
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector=field)["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])


def start(browser, client) -> None:
    browser.errors, browser.requests = [], []
    browser.load(f"http://127.0.0.1:{client.port}/")


def test_a_search_by_keyboard_and_on_a_phone(browser, extractor, gallery):
    with serving(extractor, gallery, Setup(root=gallery.parent, threshold=4.0)) as client:
        start(browser, client)
        wait(browser, "document.getElementById('about').textContent === '8 images can be searched'")
        choose(browser, gallery.parent / "3.png")
        wait(browser, f"{CARDS}.length === 8")
        first = browser.run(f"{CARDS}[0].innerText")
        assert "1 0.000" in first and "identity anna, camera 1, 3.png" in first.replace("\n", " ")
        assert browser.run("[...document.images].every((image) => image.naturalWidth > 0)")
        assert browser.run("document.querySelectorAll('.blank').length") == 1
        assert browser.run("document.querySelectorAll('#answers img[src=x]').length") == 0  # a label is text
        assert HOSTILE in browser.run("document.getElementById('answers').textContent")

        distances = [a["distance"] for a in client.search(gallery.parent / "3.png")["answers"]]
        limit = (distances[2] + distances[3]) / 2
        browser.run(f"form.threshold.value = {limit}; document.querySelector('[name=top]').focus()")
        browser.press("Enter", text="\r", windowsVirtualKeyCode=13)
        wait(browser, "document.querySelector('.limit')?.textContent.includes('3 answers are nearer, 5 farther')")
        assert browser.run("[...document.querySelectorAll('#answers > li')].findIndex((x) => x.matches('.limit'))") == 3
        beyond = browser.run(f"[...{CARDS}].map((card) => card.textContent.includes('beyond the threshold'))")
        assert beyond == [False] * 3 + [True] * 5  # in words, not by colour alone

        browser.run(f"{CARDS}[1].focus()")
        browser.press("Enter", text="\r", windowsVirtualKeyCode=13)
        cells = browser.run("[...document.querySelectorAll('.why tbody tr')].map((row) => row.cells[1].textContent)")
        assert len(cells) == 3 and abs(sum(map(float, cells)) - distances[1]) < 2e-4
        signs = browser.run("document.querySelector('.why tbody').textContent")
        assert "▲" in signs or "▽" in signs
        assert browser.run(f"{CARDS}[1].getAttribute('aria-expanded')") == "true"

        browser.size(390, 844, phone=True)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        sizes = browser.run("[...document.querySelectorAll('button, .button')].map((b) => b.offsetHeight)")
        assert min(filter(None, sizes)) >= 35  # for fingers
        browser.size(1280, 900)
        assert browser.errors == []
        assert {urlsplit(url).netloc for url in browser.requests if not url.startswith("blob:")} == {
            f"127.0.0.1:{client.port}"
        }


def test_drop_paste_and_messages(browser, extractor, gallery):
    image = b64encode((gallery.parent / "5.png").read_bytes()).decode()
    with serving(extractor, gallery) as client:
        for kind in ("drop", "paste"):
            start(browser, client)
            wait(browser, "gallery !== null")
            browser.run("form.pid.value = 'bob'")
            browser.run(DROP % (image, kind))
            wait(browser, f"{CARDS}.length === 2")
            assert "5.png" in browser.run(f"{CARDS}[0].innerText")
        browser.run(DROP % ("AAAA", "drop"))
        wait(browser, "document.getElementById('status').textContent.includes('is not an image')")
        assert browser.run(f"{CARDS}.length") == 0  # those of the image before
        wait(browser, "document.getElementById('query').hidden")
        assert browser.run("getComputedStyle(document.querySelector('#status'), '::before').content") == '"Problem: "'
        choose(browser, gallery.parent / "0.png", "#camera")
        wait(browser, "document.getElementById('status').textContent.startsWith('2 answers')")
        assert browser.run("document.getElementById('camera').getAttribute('capture')") == "environment"
    choose(browser, gallery.parent / "1.png")  # the server is stopped
    wait(browser, "document.getElementById('status').textContent.includes('does not answer')")


def test_the_token_is_asked_for(browser, extractor, gallery):
    with serving(extractor, gallery, token=TOKEN) as client:
        start(browser, client)
        wait(browser, "!document.getElementById('token').hidden")
        browser.run(f"document.querySelector('[name=token]').value = '{TOKEN}'")
        browser.run("document.querySelector('[name=token]').focus()")
        browser.press("Enter", text="\r", windowsVirtualKeyCode=13)
        wait(browser, "gallery !== null && document.getElementById('token').hidden")
        choose(browser, gallery.parent / "1.png")
        wait(browser, f"{CARDS}.length === 8")
        assert not any(TOKEN in url for url in browser.requests)


def test_the_description_needs_no_network(browser, extractor, gallery):
    with serving(extractor, gallery) as client:
        start(browser, client)
        browser.errors, browser.requests = [], []
        browser.load(f"http://127.0.0.1:{client.port}/docs")
        wait(browser, "document.querySelectorAll('.opblock').length >= 7")
        assert {urlsplit(url).netloc for url in browser.requests} == {f"127.0.0.1:{client.port}"}
        assert browser.errors == []
