"""Bar charts as SVG, without a library."""

from dataclasses import dataclass
from html import escape

LEFT, RIGHT, TOP, ROW, BAR = 250, 110, 64, 30, 20
WIDTH = 480
# Bars of those that were not measured in the same run are pale.
COLOURS = {"ours": "#1b7f5c", "peer": "#4a6fa5", "elsewhere": "#c3c9d4"}


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    kind: str


def bars(title, subtitle, unit, rows, longest=None):
    """A chart of some rows. What is longer than `longest` is cut, and says so."""
    longest = longest or max(row.value for row in rows)
    height = TOP + ROW * len(rows) + 20
    body = "".join(drawn(row, TOP + ROW * number, longest, unit) for number, row in enumerate(rows))
    total = LEFT + WIDTH + RIGHT
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" \
width="{total}" height="{height}" font-family="sans-serif" font-size="13" role="img">
<title>{escape(title)}</title>
<rect width="{total}" height="{height}" fill="#ffffff"/>
<text x="16" y="26" font-size="16" font-weight="bold" fill="#1d2430">{escape(title)}</text>
<text x="16" y="46" fill="#5a6475">{escape(subtitle)}</text>
{body}</svg>
"""


def drawn(row, top, longest, unit):
    length = WIDTH * min(row.value / longest, 1)
    middle = top + BAR / 2 + 5
    cut = ""
    if row.value > longest:
        # A white gap through the bar: it goes on beyond the chart.
        gap = LEFT + WIDTH - 30
        cut = (
            f'<path d="M{gap} {top + BAR + 2}l8 -{BAR + 4}h8l-8 {BAR + 4}z" fill="#ffffff"/>\n'
        )
    return (
        f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end" fill="#1d2430">'
        f"{escape(row.label)}</text>\n"
        f'<rect x="{LEFT}" y="{top}" width="{max(length, 1):.1f}" height="{BAR}" '
        f'fill="{COLOURS[row.kind]}"/>\n{cut}'
        f'<text x="{LEFT + length + 8:.1f}" y="{middle}" fill="#1d2430">'
        f"{row.value:.3g} {escape(unit)}</text>\n"
    )
