"""One self-contained HTML page: its frame, style and small parts. Nothing in it comes from the network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape

from rholoss.arguments import path_of
from rholoss.files import atomic_write

STYLE = """
.rholoss{--ink:#1c2733;--soft:#5b6875;--line:#dde3e9;--paper:#fff;--card:#f6f8fa;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;
  --c3:#cc79a7;--c4:#e69f00;--c5:#56b4e9;--c6:#7f8b97;--fill:#a9cbe3;color:var(--ink);background:var(--paper);
  line-height:1.5;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;
  max-width:1160px;margin:0 auto;padding:24px 20px;box-sizing:border-box;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){.rholoss{--ink:#e4e9ee;--soft:#9aa7b3;--line:#313b45;--paper:#12171d;--card:#1a2129;
  --c0:#56b4e9;--c1:#ff8c42;--c2:#2ec49a;--c3:#e3a0c4;--c4:#f0b93a;--c5:#8fd0f5;--c6:#9aa7b3;--fill:#2d5f7f}}
.rholoss *{box-sizing:border-box}
.rholoss h1{font-size:25px;line-height:1.25;margin:0 0 4px}
.rholoss h2{font-size:19px;margin:34px 0 4px}
.rholoss h3{font-size:15px;margin:22px 0 2px}
.rholoss p{margin:2px 0 10px;color:var(--soft);max-width:76ch}
.rholoss .cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(148px,1fr));gap:10px;margin:16px 0}
.rholoss .cards div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:9px 12px}
.rholoss .cards b{display:block;font-size:20px;font-weight:600}
.rholoss .cards span{font-size:12.5px;color:var(--soft)}
.rholoss .verdict{border-left:5px solid var(--c6);background:var(--card);border-radius:0 8px 8px 0;padding:10px 16px;
  margin:14px 0}
.rholoss .verdict p{color:var(--ink);margin:4px 0}
.rholoss .verdict p:first-child{font-weight:600}
.rholoss .yes{border-color:var(--c2)}
.rholoss .gate{border-color:var(--c4)}
.rholoss .no{border-color:var(--c1)}
.rholoss .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--least)),1fr));gap:16px;margin:12px 0}
.rholoss figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:12px 12px 8px;min-width:0}
.rholoss figcaption{font-weight:600;font-size:14px}
.rholoss svg{display:block;width:100%;height:auto;margin-top:4px}
.rholoss svg text{fill:var(--soft);font-size:13px;stroke:none}
.rholoss svg .grid{stroke:var(--line);stroke-width:1}
.rholoss .legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;color:var(--soft)}
.rholoss .legend i{display:inline-block;width:16px;height:0;border-top:3px solid;margin-right:5px;vertical-align:middle}
.rholoss .legend i.dash{border-top-style:dashed;border-top-width:2px}
.rholoss .legend i.area{height:10px;border:0;background:currentColor}
.rholoss .wide{overflow-x:auto}
.rholoss table{border-collapse:collapse;font-size:13.5px;margin:6px 0}
.rholoss th,.rholoss td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;background:none;
  color:var(--ink)}
.rholoss th:first-child,.rholoss td:first-child{text-align:left}
.rholoss th{color:var(--soft);font-weight:600}
.rholoss select{font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);border-radius:6px;
  padding:4px 8px;max-width:100%}
.rholoss .tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:8px;margin:8px 0}
.rholoss .tiles.texts{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.rholoss .tile{border:1px solid var(--line);border-radius:6px;padding:6px;font-size:12px;line-height:1.35;
  color:var(--soft);min-width:0}
.rholoss .tile[hidden]{display:none}
.rholoss .tile img{display:block;width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;background:#000;
  border-radius:3px;margin-bottom:4px}
.rholoss .tile b{color:var(--ink);font-weight:600}
.rholoss .tile q{display:block;color:var(--ink);font-size:13px;margin-bottom:4px;max-height:8.2em;overflow:auto;
  quotes:none}
.rholoss .tile em{font-style:normal;color:var(--c1)}
.rholoss footer{margin-top:34px;font-size:12.5px;color:var(--soft)}
@media(max-width:560px){.rholoss{padding:16px 12px}.rholoss h1{font-size:21px}.rholoss .tiles{
  grid-template-columns:repeat(3,1fr)}.rholoss .cards{grid-template-columns:repeat(2,1fr)}}
"""
SCRIPT = """
for (const menu of document.querySelectorAll('.rholoss select')) menu.addEventListener('change', () => {
  for (const tile of menu.closest('section').querySelectorAll('.tile'))
    tile.hidden = menu.value ? tile.dataset.label !== menu.value : !('top' in tile.dataset);
});
"""
BODY = "body{margin:0;background:#fff}@media(prefers-color-scheme:dark){body{background:#12171d}}:root{color-scheme:light dark}"


def write_page(path: str | os.PathLike[str], title: str, body: str) -> None:
    """Write a page of its own, whole or not at all; ``body`` is HTML, ``title`` is text."""
    head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(title)}</title><style>{BODY}</style></head>"
    content = f"{head}<body>{fragment(body)}<script>{SCRIPT}</script></body></html>\n"
    with atomic_write(path_of(path)) as file:
        file.write(content.encode("utf-8", "replace"))


def fragment(body: str) -> str:
    """HTML with its style, to be shown inside another page, such as a notebook."""
    return f'<style>{STYLE}</style><div class="rholoss">{body}</div>'


def cards(values: Iterable[tuple[str, str]]) -> str:
    """Numbers in large type: pairs of what they are and the number, as text."""
    return '<div class="cards">' + "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in values) + "</div>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts that scrolls where it is wider than the screen."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, lead: str, *parts: str) -> str:
    """A section with a heading and a sentence, both text, above parts in HTML."""
    said = f"<p>{escape(lead)}</p>" if lead else ""
    return f"<section><h2>{escape(title)}</h2>{said}{''.join(parts)}</section>"


def charts(*figures: str) -> str:
    """Figures side by side where the screen is wide enough."""
    least = 340 if len(figures) % 3 == 0 else 440  # pixels: three in a row, or two
    return f'<div class="charts" style="--least:{least}px">{"".join(figures)}</div>'
