"""Points as a table: `points.csv` with the columns image, x, y, a row for each target.

x counts columns and y rows, both from 0. Commas, semicolons and tabs separate; names that hold one stand in quotes.
"""

import csv
import io
from pathlib import Path

from istd.data.files import read_text
from istd.data.folder import Folder
from istd.data.formats.base import PointFormat, PointSource, PointTable

COLUMNS = ("image", "x", "y")


def read_points_csv(path: Path, folder: Folder) -> PointSource:
    """Read `image,x,y` rows (a header is required, in any order and with other columns beside).

    Raises:
        ValueError: naming file and line, if a column is missing or stands twice, boxes are given, a row has too many
            fields, a number does not parse, a point stands twice, or all coordinates are shares of the image's sides.
    """
    text = read_text(path)
    head = text.split("\n", 1)[0]
    separator = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    table = PointTable(path, folder, "a row with empty x and y")
    try:
        columns = _columns(next(reader, []), path)
        for row in reader:
            if any(field.strip() for field in row):
                _add_row(table, row, columns, f"line {reader.line_num}")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}.") from None
    return table.source()


def _columns(head: list[str], path: Path) -> list[int]:
    names = [name.strip().lower() for name in head]
    if {"w", "h"} <= {*names}:
        raise ValueError(
            f"{path}: beside columns 'w' and 'h', x and y may be the corner of a box or its centre; write the centre "
            "into x and y, and remove the two."
        )
    for column in COLUMNS:
        if names.count(column) != 1:
            what = f"no column {column!r}" if column not in names else f"two columns {column!r}"
            raise ValueError(f"{path}: {what}; the first line must read 'image,x,y'.")
    return [len(names), *(names.index(column) for column in COLUMNS)]


def _add_row(table: PointTable, row: list[str], columns: list[int], where: str) -> None:
    width, *places = columns
    if len(row) > width:
        raise ValueError(
            f"{table.path}, {where}: {len(row)} fields under {width} columns; put names that hold a separator in "
            "quotes."
        )
    text, x, y = (row[place].strip() if place < len(row) else "" for place in places)
    if not text:
        raise ValueError(f"{table.path}, {where}: no image is named.")
    name = table.image(text, where)
    if name is not None and (x or y):
        table.add(name, x, y, where)


def _open(folder: Folder) -> PointSource | None:
    path = folder.root / "points.csv"
    return read_points_csv(path, folder) if path.exists() else None


CSV = PointFormat("csv", "points.csv", _open)
