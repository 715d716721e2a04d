"""What pages are made of: one file each, no scripts, pictures and films inside."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

_STYLE = """
:root { color-scheme: light; --ink: #22303c; --faint: #6b7883; --line: #e3e8ec; --accent: #1f6f78; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 17px/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif; }
main { max-width: 54rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; font-weight: 600; }
h2 { font-size: 1.3rem; margin: 3.2rem 0 .3rem; font-weight: 600; }
p { margin: .3rem 0 1rem; max-width: 42rem; }
.lead { font-size: 1.12rem; color: var(--faint); }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 2rem 0 0; padding: 1.2rem 0;
           border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.figures div { font: .82rem/1.35 system-ui, sans-serif; color: var(--faint); }
.figures b { display: block; font: 600 1.55rem/1.25 "Iowan Old Style", Palatino, Georgia, serif; color: var(--accent); }
table { border-collapse: collapse; font: .86rem/1.45 system-ui, sans-serif; margin: 1rem 0; }
.wide { overflow-x: auto; }
th { text-align: left; font-weight: 600; color: var(--faint); }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
blockquote { margin: 1rem 0; max-width: 42rem; padding: .7rem 1.2rem;
             border-left: 3px solid var(--accent); background: #f6f8f9; }
blockquote p { margin: .2rem 0; }
figure { margin: 0; } figcaption { font: .82rem/1.45 system-ui, sans-serif; margin-top: .4rem; }
figcaption span { color: var(--faint); }
.cards { display: flex; flex-wrap: wrap; gap: 1.6rem 1.4rem; margin: 1rem 0 1.6rem; } .cards figure { width: 15.5rem; }
.strip { display: grid; grid-template-columns: repeat(12, 1fr); gap: .35rem; margin: 1rem 0; }
.strip figcaption { font-size: .68rem; text-align: center; color: var(--faint); margin: 0; }
figure img, video { width: 100%; display: block; margin: 0; image-rendering: pixelated; }
details { margin-top: 1rem; } summary { cursor: pointer; color: var(--faint); }
pre { font: .78rem/1.5 ui-monospace, Menlo, Consolas, monospace; background: #f6f8f9; padding: 1rem; overflow-x: auto; }
footer { margin-top: 4rem; font: .82rem/1.5 system-ui, sans-serif; color: var(--faint); }
""".strip()


def page(title: str, body: Iterable[str]) -> str:
    """A whole page of these parts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def figures(numbers: Iterable[tuple[str, str]]) -> str:
    """A row of large numbers, each with what it is of."""
    cells = "".join(f"<div><b>{text(number)}</b>{text(what)}</div>" for number, what in numbers)
    return f'<div class="figures">{cells}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: range) -> str:
    """A table; the columns in `numbers` are aligned to the right."""

    def cell(tag: str, column: int, content: str) -> str:
        return f'<{tag} class="number">{content}</{tag}>' if column in numbers else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", column, text(name)) for column, name in enumerate(heads))
    lines = ["".join(cell("td", column, text(content)) for column, content in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def image(png: bytes, description: str) -> str:
    return f'<img alt="{text(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def text(content: str) -> str:
    return html.escape(content)


def video(mp4: bytes, description: str) -> str:
    """A film that plays by itself, again and again."""
    source = f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"
    return f'<video controls loop autoplay muted playsinline aria-label="{text(description)}" src="{source}"></video>'


def captioned(medium: str, lines: Mapping[str, str]) -> str:
    """A picture or film and what is said below it: lines by their names, of which one may be empty."""
    said = [(f"<span>{text(name)}:</span> " if name else "") + text(line) for name, line in lines.items()]
    return f"<figure>{medium}<figcaption>{'<br>'.join(said)}</figcaption></figure>"


def side_by_side(kind: str, parts: Iterable[str]) -> str:
    """Figures in rows: "cards", or small ones in a "strip"."""
    return f'<div class="{kind}">\n' + "\n".join(parts) + "\n</div>"


def shortened(answer: str) -> str:
    """The beginning of an answer, in one line: a model may not know where to stop."""
    line = " ".join(answer.split())
    return line if len(line) <= 60 else line[:59] + "…"


def duration(seconds: int | float) -> str:
    """90 -> "1 min 30 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
