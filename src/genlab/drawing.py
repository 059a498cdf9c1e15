"""Pictures: grids, pairs and maps of uint8 tensors, PNG files that say what made them, curves of a run."""

from __future__ import annotations

import contextlib
import json
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from genlab.errors import LoaderError, StorageError, expected
from genlab.files import read_rows, replacing


@contextlib.contextmanager
def guarded(what: object) -> Iterator[None]:
    """A picture or table that cannot be made costs a warning and not the run; a full disk, or a loader that has died,
    is no fault of the picture. For one rank alone: others must not wait for what happens within.

    Args:
        what: its file, for the warning.
    """
    try:
        yield
    except Exception as error:
        if isinstance(expected(error), StorageError | LoaderError):
            raise
        warnings.warn(f"{what} could not be made ({type(error).__name__}: {error})")


SMALL = 64  # images up to this size are enlarged in grids
GAP = 2  # pixels between the images of a grid, before enlarging
BACKGROUND = 255
WINDOW = 20  # points of a moving mean


def grid(images: Tensor, nrow: int = 8) -> Image.Image:
    """Images side by side, `nrow` in a row, white between them; small ones enlarged by whole factors, nearest.

    Args:
        images: uint8 [N, C, H, W], C 1, 3 or 4 (RGBA), N at least 1.
    """
    items = to_pixels(images)
    n, height, width, channels = items.shape
    columns = min(nrow, n)
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), BACKGROUND, np.uint8)
    for i, image in enumerate(items):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    by = enlargement(height, width)
    return to_picture(sheet).resize((sheet.shape[1] * by, sheet.shape[0] * by), Image.Resampling.NEAREST)


def captioned(picture: Image.Image, cell: tuple[int, int], captions: Sequence[str], columns: int) -> Image.Image:
    """A grid with a text under each of its images, in at most two lines.

    Args:
        picture: see `grid`.
        cell: height and width of an image and the gap after it, in its pixels.
    """
    height, width = cell
    lines = [textwrap.wrap(text, max(8, width // 6), max_lines=2, placeholder="...") for text in captions]
    more, font = 12 * max(map(len, lines)) + 4, ImageFont.load_default(10)
    rows = math.ceil(len(captions) / columns)
    sheet = Image.new("RGB", (picture.width, rows * (height + more)), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(sheet)
    for row in range(rows):
        part = picture.crop((0, row * height, picture.width, min((row + 1) * height, picture.height)))
        sheet.paste(part, (0, row * (height + more)))
    for i, words in enumerate(lines):
        at = (i % columns * width + width // 2, i // columns * (height + more) + height)
        draw.multiline_text(at, "\n".join(words), fill=(0, 0, 0), font=font, anchor="ma", spacing=1, align="center")
    return sheet


def save_grid(
    path: str | Path,
    images: Tensor,
    nrow: int = 8,
    meta: Mapping[str, Any] | None = None,
    captions: Sequence[str] = (),
) -> None:
    """Writes uint8 [N, C, H, W] as one PNG, with texts under them where there are any; `meta`: what made them."""
    picture = grid(images, nrow)
    if any(captions):
        by = enlargement(*images.shape[2:])
        height, width = ((side + GAP) * by for side in images.shape[2:])
        picture = captioned(picture, (height, width), captions, min(nrow, len(images)))
    write_png(path, picture, meta or {})


def save_png(path: str | Path, image: Tensor, meta: Mapping[str, Any] | None = None) -> None:
    """Writes one image at its own size. image: uint8 [C, H, W]; meta: what made it (model, run, seed, label, ...)."""
    write_png(path, to_picture(to_pixels(image[None])[0]), meta or {})


def read_meta(path: str | Path) -> dict[str, Any]:
    """What `save_grid` or `save_png` wrote along with a picture: text as it is, anything else as JSON."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    with Image.open(path) as image:
        return {key: value(text) for key, text in image.text.items()}  # type: ignore[attr-defined]


def save_pairs(
    path: str | Path,
    samples: Tensor,
    nearest: Tensor,
    distances: Tensor,
    columns: int = 4,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes pairs as PNG, `columns` in a row: left the sample, right the real image nearest to it, below the distance.

    Args:
        samples: uint8 [N, C, H, W], C 1 or 3, N at least 1.
        nearest: uint8, of the same shape.
        distances: float [N], in the extractor's feature space; see `neighbours.closest_pairs`.
        meta: what made the samples; the distances go along.
    """
    assert samples.shape == nearest.shape, f"{tuple(samples.shape)} samples, {tuple(nearest.shape)} real images"
    assert len(distances) == len(samples), f"{len(samples)} pairs, {len(distances)} distances"
    factor = enlargement(*samples.shape[2:])
    height, width = (side * factor for side in samples.shape[2:])
    columns = min(columns, len(samples))
    rows, line, space = math.ceil(len(samples) / columns), 14, 4 * GAP  # pixels of a caption, and between pairs
    across, down = 2 * width + GAP + space, height + line + space
    sheet = Image.new("RGB", (columns * across - space, rows * down - space), (BACKGROUND,) * 3)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(line - 3)
    for i, pair in enumerate(zip(to_pixels(samples), to_pixels(nearest), strict=True)):
        left, top = i % columns * across, i // columns * down
        for x, pixels in zip((left, left + width + GAP), pair, strict=True):
            sheet.paste(to_picture(pixels).resize((width, height), Image.Resampling.NEAREST), (x, top))
        words = f"{float(distances[i]):.4g}"
        draw.text((left + width + GAP // 2, top + height + 1), words, fill=(0, 0, 0), font=font, anchor="ma")
    write_png(path, sheet, {"distances": [float(d) for d in distances], **(meta or {})})


def save_map(
    path: str | Path, images: Tensor, side: int, points: Tensor | None = None, labels: Tensor | None = None
) -> None:
    """Writes a square of images that touch; beside it, where given, points of the plane coloured by label.

    Args:
        images: uint8 [side * side, C, H, W], by rows.
        points: float [N, 2].
        labels: int64 [N], or None.
    """
    pixels = to_pixels(images)
    height, width, channels = pixels.shape[1:]
    sheet = pixels.reshape(side, side, height, width, channels).swapaxes(1, 2).reshape(side * height, side * width, -1)
    if points is None:
        write_png(path, to_picture(sheet), {})
        return
    figure = _figure(13, 6.2)
    left, right = figure.subplots(1, 2)
    left.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255)
    left.set_axis_off()
    left.set_title("decoded at the quantiles of the prior")
    x, y = points.float().numpy().T
    shown = right.scatter(x, y, s=6, c=None if labels is None else labels.numpy(), cmap="tab10")
    if labels is not None:
        figure.colorbar(shown, ax=right, label="label")
    right.set_title("encodings of real images")
    right.set_aspect("equal")
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png")


def save_attention(path: str | Path, maps: Sequence[tuple[Tensor, Sequence[str], Sequence[str]]]) -> None:
    """Writes maps of attention side by side, dark where the weight is large.

    Args:
        maps: of each pair the weights, float [T, S], and the words of its rows (T) and of its columns (S).
    """
    figure = _figure(4.2 * len(maps), 4.6)
    for axes, (weights, rows, columns) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        axes.imshow(weights.float().cpu().numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), rows, fontsize=7)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png")


def save_attention_over(path: str | Path, maps: Sequence[tuple[Tensor, Sequence[str], Tensor]]) -> None:
    """Writes pictures, a row each: itself, then a copy for each word, dark where the word has no weight and as it is at
    the word's largest.

    Args:
        maps: of each picture the weights, float [T, rows, columns], the T words, and its pixels, uint8 [C, H, W].
    """
    across = 1 + max(len(words) for _, words, _ in maps)
    figure = _figure(1.2 * across, 1.4 * len(maps))
    for line, (weights, words, picture) in zip(figure.subplots(len(maps), across, squeeze=False), maps, strict=True):
        pixels = to_pixels(picture[None, :3].expand(1, 3, -1, -1))[0].astype(np.float32) / 255
        light = F.interpolate(weights[:, None].float().cpu(), list(picture.shape[1:]), mode="bilinear")[:, 0]
        light = light / light.amax((1, 2), keepdim=True)
        shown = [pixels, *(pixels * (0.1 + 0.9 * one[..., None]) for one in light.numpy())]
        for axes, image, word in zip(line, shown, ["", *words], strict=False):
            axes.imshow(image, vmin=0, vmax=1)
            axes.set_title(word, fontsize=8)
        for axes in line:
            axes.set_axis_off()
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png")


def curves(metrics_jsonl_path: str | Path, out_png: str | Path) -> bool:
    """Draws all values of a metrics.jsonl against samples seen, one panel a quantity, train and val in one.

    Args:
        metrics_jsonl_path: rows with "samples", perhaps "time", and values, e.g. "train/loss", "val/fid_1k_test.proxy".
        out_png: the picture; the folder is made.

    Returns:
        False, and no picture, if there is nothing to draw.
    """
    from matplotlib.ticker import EngFormatter

    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in read_rows(Path(metrics_jsonl_path)):
        for key, value in row.items():
            if key in ("samples", "time") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                side, _, quantity = key.rpartition("/")
                panels.setdefault(quantity, {}).setdefault(side, []).append((float(row["samples"]), float(value)))
    if not panels:
        return False
    names = sorted(panels, key=lambda name: (name != "loss", not any(s.startswith("val") for s in panels[name])))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(4.6 * columns, 3.2 * rows)
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        for side, points in panels[name].items():
            x, y = np.array(sorted(points)).T
            colour = {"train": "tab:blue", "val": "tab:orange"}.get(side, "tab:green")
            if len(x) > 60:  # noisy: the values pale, their moving mean in front
                axes.plot(x, y, color=colour, lw=0.7, alpha=0.35)
                x, y = (np.convolve(values, np.ones(WINDOW) / WINDOW, "valid") for values in (x, y))
                side = f"{side}, mean of {WINDOW}"
            label = f"{side}: {y[-1]:.4g}".removeprefix(": ")
            axes.plot(x, y, color=colour, lw=1.5, marker="o" if len(x) <= 30 else None, ms=3, label=label)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("samples seen", fontsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(labelsize=8)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    with replacing(Path(out_png)) as temporary:
        figure.savefig(temporary, format="png")
    return True


def _figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=100, layout="constrained")).figure


def enlargement(height: int, width: int) -> int:
    """How much small images are enlarged."""
    return 3 if max(height, width) <= SMALL // 2 else 2 if max(height, width) <= SMALL else 1


def to_pixels(images: Tensor) -> np.ndarray:
    """uint8 [N, C, H, W] -> uint8 [N, H, W, C]."""
    assert images.dtype == torch.uint8, f"expected uint8 [N, C, H, W], got {images.dtype}"
    assert images.ndim == 4, f"expected uint8 [N, C, H, W], got {tuple(images.shape)}"
    assert images.shape[1] in (1, 3, 4), f"expected [N, C, H, W] with 1, 3 or 4 channels, got {tuple(images.shape)}"
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_picture(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] -> picture, grey, RGB or RGBA."""
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write_png(path: str | Path, image: Image.Image, meta: Mapping[str, Any]) -> None:
    """A PNG whose text chunks hold each value of `meta` as JSON."""
    info = PngInfo()
    for key, value in meta.items():
        info.add_itxt(str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    with replacing(Path(path)) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)
