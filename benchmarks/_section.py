"""The part of a page that a script writes: between two comments, so that nothing around it is touched."""

from pathlib import Path


def write_section(path: Path, start: str, end: str, text: str) -> None:
    """Replace what stands between the comments ``start`` and ``end`` of ``path``. Raises ValueError where one is missing."""
    head, found, rest = path.read_text(encoding="utf-8").partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} needs the comments {start!r} and {end!r} around the part that is written")
    path.write_text(f"{head}{start}\n\n{text}\n{end}{tail}", encoding="utf-8")
