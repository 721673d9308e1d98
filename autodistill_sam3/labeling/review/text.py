"""Names for people and for links: what is in a file name or a prompt is never trusted, nor always printable."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from PIL import ImageFont

# Joiners are invisible, yet Persian and emoji cannot be written without them.
_JOINERS = "\u200c\u200d"
_UNDECODED = range(0xDC80, 0xDD00)
# Tried in this order after the font that comes with matplotlib; Pillow looks for them where the system keeps fonts.
_SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "unifont.otf",
    "Arial Unicode.ttf",
    "msyh.ttc",
)
_MISSING_GLYPH = "\uffff"


def printable(text: str) -> str:
    r"""The text with control characters, direction marks and undecodable bytes written as escapes.

    Example:
        >>> print(printable("a\nb\u202e\udcff é"))
        a\nb\u202e\xff é
    """
    return "".join(c if c.isprintable() or c in _JOINERS else _escape(c) for c in text)


def image_href(split: str, file: str) -> str:
    r"""The link from `review/` to an image of the dataset; bytes that are no UTF-8 come through.

    Example:
        >>> image_href("train", "50% #1\udcff?.jpg")
        '../train/images/50%25%20%231%FF%3F.jpg'
    """
    return "/".join(["..", _quote(split), "images", _quote(file)])


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of a long text: names of one folder often differ only at the end."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font that has every character of the text, if one is found; else the first that there is."""
    fonts = [path for path in (_matplotlib_font(), *_SYSTEM_FONTS) if path and _can_open(path)]
    if not fonts:
        return ImageFont.load_default(size)
    best = next((path for path in fonts if _has_all(path, frozenset(text))), fonts[0])
    return ImageFont.truetype(best, size)


def font_path_for(text: str) -> str | None:
    """The file of :func:`font_for`; None where only Pillow's own font is left."""
    path = getattr(font_for(text, 12), "path", None)
    return path if isinstance(path, str) else None


def _escape(character: str) -> str:
    if ord(character) in _UNDECODED:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _quote(name: str) -> str:
    try:
        return quote(name.encode("utf-8", "surrogateescape"), safe="")
    except UnicodeEncodeError:
        return quote(name.encode("utf-8", "surrogatepass"), safe="")


@lru_cache(maxsize=1)
def _matplotlib_font() -> str | None:
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.exists():
            return str(path)
    return None


@lru_cache(maxsize=32)
def _can_open(path: str) -> bool:
    try:
        ImageFont.truetype(path, 12)
    except OSError:
        return False
    return True


@lru_cache(maxsize=1024)
def _has_all(path: str, characters: frozenset[str]) -> bool:
    font = ImageFont.truetype(path, 16)
    missing = bytes(font.getmask(_MISSING_GLYPH))
    return all(c.isspace() or c in _JOINERS or bytes(font.getmask(c)) != missing for c in characters)
