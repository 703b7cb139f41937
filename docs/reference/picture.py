"""README's picture: what it says in its first figures, as bars to one scale."""

from __future__ import annotations

import re

_SAYS = re.compile(r"\*\*(\w+) warm workers: ([\d,]+) MiB before, ([\d,]+) MiB after\.\*\*")
_WORKERS = {"Four": 4, "Six": 6, "Eight": 8, "Ten": 10, "Sixteen": 16}
_FULL = 560
_LEFT = 90

_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 178" font-family="system-ui, sans-serif" font-size="15">
  <!-- Written by `python -m docs.generate` from the figures in README.md. -->
  <style>
    :root { --ink: #1f2430; --soft: #5b6275; --line: #a3a9ba; --own: #c2410c; --shared: #3f51b5 }
    @media (prefers-color-scheme: dark) {
      :root { --ink: #e6e8f0; --soft: #a6adc0; --line: #5d6579; --own: #f28b54; --shared: #8c9eff }
    }
  </style>
"""


def drawing(readme: str) -> str:
    """Draw the memory of all processes before and after the refork."""
    said = _SAYS.search(readme)
    assert said is not None, "README.md begins with: **Eight warm workers: 1,895 MiB before, 284 MiB after.**"
    count = _WORKERS[said[1]]
    before, after = (int(figure.replace(",", "")) for figure in said.groups()[1:])
    width = _FULL * after / before
    share = _FULL / count
    boxes = "".join(
        f'  <rect x="{_LEFT + at * share:.1f}" y="20" width="{share - 3:.1f}" height="38" rx="4" fill="var(--own)"/>\n'
        for at in range(count)
    )
    return (
        f"{_HEAD}"
        f'  <text x="{_LEFT - 12}" y="44" text-anchor="end" fill="var(--ink)">before</text>\n'
        f"{boxes}"
        f'  <text x="{_LEFT + _FULL + 8}" y="45" fill="var(--ink)" font-weight="700">{said[2]} MiB</text>\n'
        f'  <text x="{_LEFT}" y="78" fill="var(--soft)" font-size="13">'
        f"{count} warm workers, each with its own copy of what it loaded</text>\n"
        f'  <text x="{_LEFT - 12}" y="124" text-anchor="end" fill="var(--ink)">after</text>\n'
        f'  <rect x="{_LEFT}" y="100" width="{width:.1f}" height="38" rx="4" fill="var(--shared)"/>\n'
        f'  <rect x="{_LEFT + width + 3:.1f}" y="101" width="{_FULL - width - 6:.1f}" height="36" rx="4" fill="none" '
        'stroke="var(--line)" stroke-dasharray="4 4"/>\n'
        f'  <text x="{_LEFT + width + 18:.1f}" y="125" fill="var(--ink)" font-weight="700">{said[3]} MiB</text>\n'
        f'  <text x="{_LEFT + _FULL - 12}" y="125" text-anchor="end" fill="var(--soft)">'
        f"{1 - after / before:.0%} given back</text>\n"
        f'  <text x="{_LEFT}" y="158" fill="var(--soft)" font-size="13">'
        f"the same {count} workers, forked from one of them, sharing its memory</text>\n"
        "</svg>\n"
    )
