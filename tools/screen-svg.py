#!/usr/bin/env python3
"""A picture of a terminal, for the documentation: plain text, as `tmux capture-pane -p` gives it, to SVG.

    tmux new-session -d -s picture -x 110 -y 16 'pg_parallel_basebackup ... -P -v; sleep 60'
    tmux capture-pane -p -t picture | tools/screen-svg.py COLUMNS >docs/progress.svg
"""

import sys
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN = 7.8, 17, 12


def main():
    columns = int(sys.argv[1])
    lines = sys.stdin.read().rstrip("\n").split("\n")
    width = round(columns * WIDTH + 2 * MARGIN)
    height = len(lines) * HEIGHT + 2 * MARGIN
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f'<rect width="{width}" height="{height}" rx="6" fill="#1b1f24"/>\n'
        f'<g font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="13" fill="#d8dee6">'
    )
    for number, line in enumerate(lines):
        if line:
            y = MARGIN + number * HEIGHT + 13
            # The length is given, so that whatever font there is fits the frame.
            length = round(len(line) * WIDTH, 1)
            print(f'<text x="{MARGIN}" y="{y}" xml:space="preserve" textLength="{length}">{escape(line)}</text>')
    print("</g>\n</svg>")


main()
