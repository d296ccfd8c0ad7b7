"""Draw the figures of the documentation as SVG, into docs/img or the directory given as argument.

Standard library only, and the same bytes each time: a test compares what is there with what this makes.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

INK, FAINT, PAPER = "#2b2b2b", "#8a8a8a", "#fbf9f6"
GOOD, BAD, HELD, NOTE = "#2f7d4f", "#b23b4a", "#cfe6d6", "#e9e2d6"


class Figure:
    """A drawing, in the units of its `width` and `height`.

    Args:
        width: of the paper.
        height: of the paper.
        title: what it shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
            '<g font-family="system-ui, sans-serif">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        ]

    def text(self, x: float, y: float, words: str, colour: str = INK, anchor: str = "start", size: int = 14) -> None:
        """Words on a base line that begins, is centred or ends at a point."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">'
            f"{escape(words)}</text>"
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, colour: str = FAINT, width: float = 1.5, dash: str = ""
    ) -> None:
        """A line between two points."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" '
            f'stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, colour: str = INK) -> None:
        """A line with a head at its second point."""
        self.line(x1, y1, x2, y2, colour)
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
        along, across = (x2 - x1) / length * 8, (y2 - y1) / length * 8
        points = f"{x2:g},{y2:g} {x2 - along - across / 2:.1f},{y2 - across + along / 2:.1f} "
        points += f"{x2 - along + across / 2:.1f},{y2 - across - along / 2:.1f}"
        self._parts.append(f'<polygon points="{points}" fill="{colour}"/>')

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> None:
        """A rectangle by its upper left corner."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" stroke="{stroke}"/>'
        )

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</g>", "</svg>"]) + "\n"


def one_round() -> Figure:
    """One round at five masters of which one is hung."""
    figure = Figure(
        760, 380, "One round: all masters are asked at once, three of five decide, a hung one is not waited for"
    )
    start, decided, end, client = 150, 340, 720, 60
    figure.text(20, client + 5, "client")
    figure.line(start - 20, client, end, client, INK)
    replies = [("a", 250, "OK"), ("b", 290, "OK"), ("c", decided, "OK"), ("d", 420, "OK, too late"), ("e", 0, "")]
    for row, (name, back, said) in enumerate(replies):
        y = 110 + row * 36
        figure.text(20, y + 5, f"master {name}")
        figure.line(start - 20, y, end, y, dash="2 4")
        reached = start + 30 + row * 4
        figure.arrow(start, client, reached, y, INK)
        if said:
            figure.arrow(back - 30, y, back, client, GOOD if back <= decided else FAINT)
            figure.text(back - 24, y - 5, said, GOOD if back <= decided else FAINT, size=12)
        else:
            figure.text(reached + 16, y - 5, "no answer", BAD, size=12)
    figure.line(start, 34, start, 340, dash="5 4")
    figure.line(decided, 34, decided, 340, GOOD, 2)
    figure.text(20, 26, "the clock is read, then SET … NX PX ttl to all", size=13)
    figure.text(decided + 6, 26, "a quorum: held", GOOD, size=13)
    bar = 318
    figure.box(start, bar, decided - start, 22, NOTE)
    figure.box(decided, bar, 320, 22, HELD)
    figure.box(decided + 320, bar, end - decided - 320, 22, NOTE)
    figure.text((start + decided) / 2, bar + 16, "elapsed", anchor="middle", size=13)
    figure.text(decided + 160, bar + 16, "validity = ttl − elapsed − drift", anchor="middle", size=13)
    figure.text((decided + 320 + end) / 2, bar + 16, "drift", anchor="middle", size=13)
    figure.text(start, 366, "0", anchor="middle", size=12)
    figure.text(end, 366, "ttl", anchor="middle", size=12)
    return figure


def majorities() -> Figure:
    """Why two clients cannot both have a quorum."""
    figure = Figure(760, 190, "Two quorums of five masters share at least one, which grants to one client only")
    for index, name in enumerate("abcde"):
        x = 150 + index * 115
        shared = name == "c"
        figure.box(x - 38, 72, 76, 46, HELD if index < 3 else NOTE, BAD if shared else FAINT)
        figure.text(x, 92, f"master {name}", anchor="middle", size=13)
        figure.text(x, 110, "key of A" if index < 3 else "key of B", GOOD if index < 3 else INK, "middle", 12)
    figure.line(112, 52, 418, 52, GOOD, 3)
    figure.text(265, 42, "client A: 3 of 5, holds", GOOD, "middle")
    figure.line(342, 140, 648, 140, BAD, 3, "6 4")
    figure.text(495, 164, "client B: would need 3, and c has said no", BAD, "middle")
    return figure


def lease() -> Figure:
    """The life of a lease that is kept."""
    figure = Figure(760, 280, "A lease is extended at each third of its TTL, and given up before its validity ends")
    left, third, top = 60, 110, 60
    figure.text(left, 30, "auto_extend: at each third of the TTL", INK)
    for row in range(3):
        x, y = left + row * third, top + row * 34
        figure.box(x, y, 3 * third - 10, 20, HELD)
        figure.box(x + 3 * third - 10, y, 10, 20, NOTE)
        figure.text(x + 6, y + 15, "acquired" if row == 0 else "extended", GOOD, size=12)
        figure.line(x, y, x, 220, FAINT, 1, "2 4")
    last = left + 2 * third
    expires, lost = last + 3 * third - 10, last + 3 * third - 46
    for tried in range(4):
        x = last + third + tried * 30
        figure.text(x, 190, "×", BAD, "middle", 18)
    figure.text(last + third - 8, 170, "no quorum answers", BAD, size=12)
    figure.line(lost, 120, lost, 224, BAD, 2)
    figure.line(expires, 120, expires, 224, INK, 2)
    figure.text(lost - 6, 242, "lost is set, on_lost is called", BAD, "end", 13)
    figure.text(expires, 262, "validity ends here, for sure", INK, "middle", 13)
    figure.line(left, 220, 720, 220, INK)
    figure.text(720, 212, "time", FAINT, "end", 12)
    return figure


def pause() -> Figure:
    """What no lock with a time limit can prevent, and what a fencing token does about it."""
    figure = Figure(760, 260, "A holder that is paused past its validity writes late; its token gives it away")
    rows = {"client A": 60, "client B": 120, "resource": 190}
    for name, y in rows.items():
        figure.text(20, y + 5, name)
        figure.line(110, y, 720, y)
    figure.box(130, 50, 190, 20, HELD)
    figure.text(138, 64, "holds, token 41", GOOD, size=12)
    figure.box(240, 40, 280, 10, BAD)
    figure.text(380, 34, "paused: it cannot look at its clock", BAD, "middle", 12)
    figure.box(340, 110, 200, 20, HELD)
    figure.text(348, 124, "holds, token 42", GOOD, size=12)
    figure.arrow(430, 130, 440, 186, GOOD)
    figure.text(446, 164, "write, 42: accepted", GOOD, size=12)
    figure.arrow(530, 60, 600, 186, BAD)
    figure.text(606, 164, "write, 41", BAD, size=12)
    figure.text(600, 216, "refused: 42 was seen", BAD, "middle", 13)
    figure.line(320, 46, 320, 226, FAINT, 1, "4 4")
    figure.text(320, 242, "A's validity ends", INK, "middle", 12)
    return figure


def layers() -> Figure:
    """The architecture."""
    figure = Figure(760, 408, "The layers of the code, arrows pointing down")
    rows = [
        ("python/redlock", "the face: names, types, exceptions, logging, command", NOTE),
        ("src/python", "the binding: arguments in, results out, one map of errors", NOTE),
        ("src/host", "who waits: poll(2), or an event loop. The only place that waits", HELD),
        ("src/engine", "acquire, extend, release, inspect over N masters, as plain async fn", HELD),
        ("src/master", "one Redis: endpoint, connect, TLS, login, health; redis-rs for the protocol", HELD),
        ("src/runtime", "the executor: poll all until it stalls, then say what to wait for", HELD),
        ("quorum retry token script clock error", "pure: no I/O, tested by exact values", "#dfe6f2"),
    ]
    for row, (name, what, fill) in enumerate(rows):
        y = 16 + row * 54
        figure.box(20, y, 720, 40, fill)
        figure.text(34, y + 17, name, INK, size=14)
        figure.text(34, y + 33, what, "#555555", size=12)
        if row:
            figure.arrow(380, y - 13, 380, y - 1)
    figure.text(726, 16 + 25, "Python", FAINT, "end", 12)
    for row in range(1, len(rows)):
        figure.text(726, 16 + row * 54 + 25, "Rust", FAINT, "end", 12)
    return figure


FIGURES = {f"{draw.__name__}.svg": draw for draw in (one_round, majorities, lease, pause, layers)}


def main() -> None:
    """Write all of them."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "img"
    directory.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (directory / name).write_text(str(draw()))


if __name__ == "__main__":
    main()
