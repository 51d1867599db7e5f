"""Pictures as 8-bit rasters: windowing, true proportions in mm, side letters, sheets of slices, overlays,
encoding.

Letters are drawn into the pixels: a copy of the picture still shows which side is left.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: Perceptually uniform, and readable for colour-blind people.
COLOUR_MAP = "inferno"

MARK_COLOUR = 225
MAX_ENLARGEMENT = 6.0
TABLE_GAP_PX = 4  #: between the pictures of a table


@dataclass(frozen=True)
class Picture:
    """One file of a page, and its description for those who cannot see it."""

    file: str
    alt: str


@dataclass(frozen=True)
class PictureRow:
    """Pictures beside each other: a title, and pictures with their tags."""

    title: str
    pictures: tuple[tuple[str, Picture], ...]


def to_grey(picture: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map intensities to 0 (black) ... 255 (white), clipping outside the window.

    Returns
    -------
    ndarray, shape of `picture`, uint8
    """
    low, high = window
    return np.round(np.clip((picture - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def to_colour(picture: np.ndarray, top: float) -> np.ndarray:
    """Map 0 ... `top` to `COLOUR_MAP`; shape (rows, columns, 3), uint8."""
    index = np.round(np.clip(picture / top, 0, 1) * 255).astype(np.uint8)
    return _colour_table()[index]


def overlay(grey: np.ndarray, picture: np.ndarray, top: float) -> np.ndarray:
    """Lay a map over a dimmed grey picture: no colour below a tenth of `top`, full colour above half of it.

    Returns
    -------
    ndarray, shape (rows, columns, 3), uint8
    """
    share = np.clip(picture / top, 0, 1)[..., None]
    opacity = 0.95 * np.clip((share - 0.1) / 0.4, 0, 1)
    mixed = (1 - opacity) * 0.8 * grey[..., None] + opacity * to_colour(picture, top)
    return np.round(mixed).astype(np.uint8)


def legend_colours(count: int = 16, *, over_grey: int | None = None) -> list[str]:
    """Return colours from 0 to the top as CSS; with `over_grey` (0 to 255) as `overlay` shows them there."""
    ramp = np.linspace(0, 1, count)
    colours = to_colour(ramp, 1.0) if over_grey is None else overlay(np.full(count, over_grey), ramp, 1.0)
    return ["#" + bytes(colour).hex() for colour in colours]


def picture_size(
    shape: tuple[int, int],
    pixel_mm: tuple[float, float],
    edge_px: int,
    *,
    max_enlargement: float = MAX_ENLARGEMENT,
) -> tuple[int, int]:
    """Return width and height in pixels for true proportions, with `edge_px` for the longer side.

    Small pictures are enlarged at most `max_enlargement` times: more pixels would add no detail.
    """
    height_mm, width_mm = shape[0] * pixel_mm[0], shape[1] * pixel_mm[1]
    scale = min(edge_px / max(height_mm, width_mm), max_enlargement / min(pixel_mm))
    return max(round(width_mm * scale), 1), max(round(height_mm * scale), 1)


def enlarge(picture: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resize an 8-bit picture. All pictures are resized alike, so that none looks sharper by this."""
    return Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC)


def resize_part(
    picture: np.ndarray,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    *,
    blocks: tuple[bool, bool],
) -> Image.Image:
    """Resize a part of an 8-bit picture; parts outside of it are black.

    Parameters
    ----------
    picture
        Rows and columns.
    box
        Left, top, right and bottom edge, in pixels.
    size
        Width and height of the result.
    blocks
        Whether pixels stay blocks, with no values between them: along the width, along the height.
    """
    height, width = picture.shape
    left, top, right, bottom = box
    before = [max(math.ceil(-edge), 0) for edge in (top, left)]
    after = [max(math.ceil(edge), 0) for edge in (bottom - height, right - width)]
    padded = Image.fromarray(np.pad(picture, list(zip(before, after, strict=True))))
    left, right, top, bottom = left + before[1], right + before[1], top + before[0], bottom + before[0]
    how = [Image.Resampling.NEAREST if block else Image.Resampling.BICUBIC for block in blocks]
    wide = padded.resize((size[0], padded.height), how[0], box=(left, 0, right, padded.height))
    return wide.resize(size, how[1], box=(0, top, size[0], bottom))


def outline(image: Image.Image, maps: Sequence[tuple[np.ndarray, str]], *, level: float = 0.5) -> Image.Image:
    """Draw contours of maps over an enlarged picture, later ones over earlier ones.

    Parameters
    ----------
    image
        Picture, enlarged.
    maps
        (map on the picture's grid before it was enlarged, colour).
    level
        Value at which a contour runs.
    """
    from skimage.measure import find_contours

    drawn = image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(drawn)
    for values, colour in maps:
        rows, columns = values.shape
        padded = np.pad(np.asarray(values, np.float32), 1)  # a contour closes at the edge of the picture
        for line in find_contours(padded, level):
            if len(line) > 3:
                points = (line[:, ::-1] - 0.5) * (drawn.width / columns, drawn.height / rows)
                draw.line([tuple(p) for p in points.tolist()], fill=colour, width=3, joint="curve")
    return drawn.resize(image.size, Image.Resampling.LANCZOS)


def mark(
    image: Image.Image,
    *,
    sides: tuple[str, str] = ("", ""),
    note: str = "",
    px_per_mm: float | None = None,
    text_px: int | None = None,
) -> Image.Image:
    """Draw side letters, a note (lower left) and, where it fits, a 5 cm bar (lower right)."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    size = text_px or int(np.clip(0.042 * width, 13, 22))
    size = max(min(size, height // 6), 9)  # a slab of few slices is a strip
    font = _font(size)
    white = MARK_COLOUR if image.mode == "L" else (MARK_COLOUR,) * 3
    black = 0 if image.mode == "L" else (0, 0, 0)
    pad = max(size // 3, 3)
    style: dict[str, Any] = {
        "font": font,
        "fill": white,
        "stroke_width": max(size // 10, 1),
        "stroke_fill": black,
    }
    draw.text((pad, height / 2), sides[0], anchor="lm", **style)
    draw.text((width - pad, height / 2), sides[1], anchor="rm", **style)
    style["font"] = _font(max(int(0.8 * size), 11))
    draw.text((pad, height - pad), note, anchor="lb", **style)
    if px_per_mm and 50 * px_per_mm < 0.45 * width and height > 8 * size:
        y, right = height - pad - 2, width - pad - 2
        left = right - 50 * px_per_mm
        draw.line((left, y, right, y), fill=white, width=2)
        draw.text(((left + right) / 2, y - 3), "5 cm", anchor="mb", **style)
    return image


def ring(image: Image.Image, at: tuple[float, float]) -> Image.Image:
    """Draw a thin ring around a point, given in shares of width and height."""
    drawn = image.convert("RGB")
    x, y, radius = at[0] * drawn.width, at[1] * drawn.height, 0.14 * max(drawn.size)
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(drawn).ellipse(box, outline="#ffcc00", width=max(drawn.width // 130, 2))
    return drawn


def titled_table(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Put pictures into a table, each in the middle of its cell, with a title above each column."""
    width = max(row[0].width for row in rows) + TABLE_GAP_PX
    line = _title_line(titles, width)
    page = Image.new("L", (line.width, line.height + sum(row[0].height + TABLE_GAP_PX for row in rows)))
    page.paste(line)
    top = line.height
    for row in rows:
        for i, image in enumerate(row):
            page.paste(image, (i * width + (width - image.width) // 2, top))
        top += row[0].height + TABLE_GAP_PX
    return page


def _title_line(titles: Sequence[str], width: int) -> Image.Image:
    """Return a black line of titles, each in the middle of a column of `width` pixels."""
    size = int(np.clip(width / 13, 9, 20))
    line = Image.new("L", (len(titles) * width, 2 * size))
    for i, words in enumerate(titles):
        at = ((i + 0.5) * width, size)
        ImageDraw.Draw(line).text(at, words, anchor="mm", font=_font(size), fill=MARK_COLOUR)
    return line


def sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tile pictures of one size row by row."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    page = Image.new(images[0].mode, (columns * width, rows * height))
    for i, image in enumerate(images):
        page.paste(image, ((i % columns) * width, (i // columns) * height))
    return page


def encode(image: Image.Image, quality: int) -> bytes:
    """Encode as WebP; the same pixels give the same bytes (no time, no comment)."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def keep(files: dict[str, bytes], file: str, content: bytes, alt: str) -> Picture:
    """Add a file to those to be written; return what the page needs to show it."""
    files[file] = content
    return Picture(file, alt)


@lru_cache(maxsize=1)
def _colour_table() -> np.ndarray:
    import matplotlib

    return np.round(matplotlib.colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    # The font that comes with matplotlib: the same letters on every machine.
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )
