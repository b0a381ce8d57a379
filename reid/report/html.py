"""The page: one file that opens anywhere, without a server, network or framework."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from reid.evaluation.open_set import mean_interval
from reid.evaluation.results import Result
from reid.report.facts import with_interval
from reid.report.figures import Picture

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # no network
CONTROLS = """
<form class="controls" aria-label="which queries are shown, and in what order">
<label>Order <select name="sort"><option value="ap">hardest first (AP)</option>
<option value="-ap">easiest first</option><option value="file">as in the file</option></select></label>
<label>Query camera <select name="camera"><option value="">all</option></select></label>
<label>Person <input name="id" list="people" inputmode="numeric" size="6" placeholder="all"></label>
<datalist id="people"></datalist>
<label>First answer <select name="first"><option value="">right or wrong</option>
<option value="right">right</option><option value="wrong">wrong</option></select></label>
<button type="reset">Show all</button>
</form>
<p class="legend"><span class="right">✓ right</span> <span class="wrong">✗ wrong</span>
<span class="junk">○ junk: same person and camera, not counted</span></p>
"""
READING = """
<p>The squared distance of two descriptors is a sum over their slots, so each answer shows what every band of the body
adds to it. The yardstick of a band is halfway between its mean in the right and in the wrong answers listed here: a
band in <b class="near">blue</b> differs less and matches, one in <b class="far">hatched vermilion</b> differs more.
Choose an answer to see the numbers, which add up to its distance.</p>
"""


def tiles(result: Result) -> str:
    """The main numbers in percent, with their intervals."""
    r, pids = result.ranking, result.features.query.pids
    found = [("mAP", result.mean_ap, result.intervals["map"])]
    market = result.conventions["cmc"] == "market1501"  # the others are no means over queries
    for k in (k for k in (1, 5, 10) if k <= len(result.cmc)):
        reached = np.where(r.valid, r.first_match <= k, np.nan)
        found.append((f"Rank-{k}", result.cmc[k - 1], mean_interval(reached, pids) if market else None))
    found.append(("mINP", r.mean_inp, mean_interval(r.inp, pids)))
    cells = []
    for name, value, interval in found:
        number, sure = with_interval(value, interval)
        cells.append(f"<div><dt>{name}</dt><dd>{number}<small> %</small></dd><dd class=sure>{sure}</dd></div>")
    left_out = f", {r.n_query - r.n_valid:,} of them without a match left out" if r.n_valid < r.n_query else ""
    conventions = ", ".join(f"{k} {v}" for k, v in result.conventions.items())
    return (
        f'<dl class="tiles">{"".join(cells)}</dl><p class="quiet">{r.n_query:,} queries{left_out}, {r.n_gallery:,} '
        f"gallery images. Conventions: {escape(conventions)}. Intervals by bootstrap over the people.</p>"
    )


def figures(pictures: Sequence[Picture], captions: bool = False) -> str:
    """Images that carry their sentence as alt text; with `captions` it stands before them too."""
    images = [
        f'<img class="figure" id="figure-{p.name}" alt="{escape(p.alt)}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(p.svg.encode()).decode()}">'
        for p in pictures
    ]
    said = "".join(f"<p>{escape(p.alt)}</p>" for p in pictures) if captions else ""
    return f'{said}<div class="figures">{"".join(images)}</div>' if images else ""


def table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th scope=row>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f'<div class="wide"><table>{cells}</table></div>'


def details(title: str, rows: dict[str, Any]) -> str:
    return f"<details><summary>{escape(title)}</summary>{table([(k, str(v)) for k, v in rows.items()])}</details>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def rank_lists(data: dict[str, Any]) -> str:
    """The empty frame that report.js fills."""
    reading = READING if "slots" in data else ""
    return (
        f'{reading}{CONTROLS}<p id="count" role="status"></p><div id="rows"></div>'
        '<nav class="pages" aria-label="pages of rank lists"></nav><noscript><p class="note">The rank lists need '
        "JavaScript; figures and numbers do not.</p></noscript>"
    )


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], data: dict | None, thumbs: str) -> str:
    """The whole file. sections: (id, heading, HTML). data and thumbs: of lists.page_data, None without lists."""
    script = (HERE / "report.js").read_text(encoding="utf-8") if data else ""
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no name can end the script
    blocks = (
        f'<script type="application/json" id="data">{content}</script>'
        f'<script type="text/plain" id="thumbs">{thumbs}</script><script>{script}</script>'
    )
    links = "".join(f'<a href="#{id}">{escape(heading)}</a>' for id, heading, _ in sections)
    body = "".join(
        f'<section id="{id}" aria-labelledby="{id}-title"><h2 id="{id}-title">{escape(heading)}</h2>{html}</section>'
        for id, heading, html in sections
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{(HERE / "report.css").read_text(encoding="utf-8")}</style></head><body>
<a class="skip" href="#main">Skip to the results</a>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<nav class="sections" aria-label="sections">{links}</nav><main id="main">{body}</main>{blocks if data else ""}
</body></html>
"""
