"""Opening what a user names: regular files of a sensible size, in the encodings that such files come in."""

import stat
from pathlib import Path

LARGEST_TEXT = 256 * 2**20  # bytes: COCO files of whole benchmarks have tens of MB


def regular_file(path: Path) -> Path:
    """`path` itself if it can be read to an end: a pipe or a device in place of a file would be waited for without end.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if it is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a NUL in the name
        raise ValueError(f"{str(path)!r} cannot be opened ({error}).") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is no regular file (a folder, pipe or device); replace it with one.")
    return path


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without byte-order mark, UTF-16 or UTF-32 with one, or else GB 18030 (GBK).

    Bytes that are no UTF-8 are taken for GB 18030, in which Chinese editions of Windows write lists and tables; ASCII
    is the same in all of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no regular file, larger than 256 MiB, or in none of these encodings.
    """
    size = regular_file(path).stat().st_size
    if size > LARGEST_TEXT:
        raise ValueError(f"{path} has {size / 2**20:.0f} MiB; lists, tables and annotations may have 256.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None
    for encoding in _encodings(content):
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{path} is no text in UTF-8, UTF-16 or GBK; save it as UTF-8.")


def _encodings(content: bytes) -> tuple[str, ...]:
    if content.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return ("utf-32",)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ("utf-16",)
    return ("utf-8", "gb18030")
