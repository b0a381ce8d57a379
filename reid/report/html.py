"""HTML of the report: one self-contained file without a server, network or framework."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reid.evaluation.open_set import CONFIDENCE, mean_interval
from reid.evaluation.results import Result
from reid.report.figures import Picture

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # no network
CONTROLS = """
<form class="controls" aria-label="order and choice of the queries">
<label>Order <select name="sort"><option value="ap">hardest first (AP)</option>
<option value="-ap">easiest first</option><option value="file">as in the file</option></select></label>
<label>Query camera <select name="camera"><option value="">all</option></select></label>
<label>Identity <input name="id" list="known" size="10" placeholder="all"></label>
<datalist id="known"></datalist>
<label>First answer <select name="first"><option value="">right or wrong</option>
<option value="right">right</option><option value="wrong">wrong</option></select></label>
<button type="reset">Show all</button>
</form>
<p class="legend"><span class="right">✓ right</span> <span class="wrong">✗ wrong</span>
<span class="junk">○ junk: same identity and camera, not counted</span></p>
"""
READING = """
<p>The squared distance of two descriptors is the sum of the distances of their parts. Next to each answer, every part
is drawn as a band at its place in the image. A band's reference value is halfway between its mean distance in the right
answers and in the wrong answers of this page. <b class="near">Blue</b> bands are below their reference value: they are
similar. <b class="far">Hatched vermilion</b> bands are above it: they differ. Select an answer to see the numbers.</p>
"""
LISTS = """
<p id="count" role="status"></p><div id="rows"></div>
<nav class="pages" aria-label="pages of rank lists"></nav>
<noscript><p class="note">The rank lists need JavaScript. The figures and numbers do not.</p></noscript>
"""


class Section(NamedTuple):
    id: str
    heading: str
    html: str


def tiles(result: Result) -> str:
    """The main scores in percent, with their intervals."""
    ranking, pids = result.ranking, result.features.query.pids
    found: list[tuple[str, float, list[float] | None]] = []
    found.append(("mAP", result.mean_ap, result.intervals["map"]))
    for k in (1, 5, 10):
        if k > len(result.cmc):
            break
        interval = None
        if result.scoring.cmc == "market1501":  # the other CMCs are not means over queries
            reached = np.where(ranking.valid, ranking.first_match <= k, np.nan)
            interval = mean_interval(reached, pids)
        found.append((f"Rank-{k}", result.cmc[k - 1], interval))
    found.append(("mINP", ranking.mean_inp, mean_interval(ranking.inp, pids)))
    cells = ""
    for name, value, interval in found:
        limits = ""
        if interval:
            low, high = (f"{100 * limit:.1f}" for limit in interval)
            limits = f"{CONFIDENCE:.0%}: {low} to {high}"
        number = f"{100 * value:.1f}<small> %</small>"
        cells += f"<div><dt>{name}</dt><dd>{number}</dd><dd class=interval>{limits}</dd></div>"
    return f'<dl class="tiles">{cells}</dl>'


def conventions(result: Result) -> str:
    """How many images were scored, and how."""
    r = result.ranking
    left_out = r.n_query - r.n_valid
    without = f" ({left_out:,} without a match are not counted)" if left_out else ""
    words = ", ".join(f"{k} {v}" for k, v in result.conventions.items())
    return (
        f'<p class="quiet">{r.n_query:,} queries{without}, {r.n_gallery:,} gallery images. '
        f"Conventions: {escape(words)}. Intervals: bootstrap over the identities.</p>"
    )


def figures(pictures: Sequence[Picture], captions: bool = False) -> str:
    """Images with their alt text, and with `captions` the same text above them."""
    images, texts = "", ""
    for p in pictures:
        source = base64.b64encode(p.svg.encode()).decode()
        images += f'<img class="figure" id="figure-{p.name}" alt="{escape(p.alt)}" '
        images += f'src="data:image/svg+xml;base64,{source}">'
        texts += f"<p>{escape(p.alt)}</p>" if captions else ""
    return f'{texts}<div class="figures">{images}</div>' if images else ""


def table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th scope=row>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f'<div class="wide"><table>{cells}</table></div>'


def details(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return f"<details><summary>{escape(title)}</summary>{table(rows)}</details>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def rank_lists(data: dict[str, Any], thumbnails: str) -> str:
    """The rank lists, filled by report.js from data and thumbnails, as lists.page_data returns them."""
    content = json.dumps(data, separators=(",", ":"))
    content = content.replace("<", "\\u003c")  # so that no image name can end the script
    reading = READING if "slots" in data else ""
    return (
        f"{reading}{CONTROLS}{LISTS}"
        f'<script type="application/json" id="data">{content}</script>'
        f'<script type="text/plain" id="thumbs">{thumbnails}</script>'
        f"<script>{read('bands.js')}{read('report.js')}</script>"
    )


def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file."""
    links = "".join(f'<a href="#{s.id}">{escape(s.heading)}</a>' for s in sections)
    body = ""
    for s in sections:
        heading = f'<h2 id="{s.id}-title">{escape(s.heading)}</h2>'
        body += f'<section id="{s.id}" aria-labelledby="{s.id}-title">{heading}{s.html}</section>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{read("report.css")}</style></head><body>
<a class="skip" href="#main">Skip to the results</a>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<nav class="sections" aria-label="sections">{links}</nav><main id="main">{body}</main>
</body></html>
"""
