"""Pictures for people: heatmaps over images, detectors side by side, score distributions. PNG bytes.

Colors mean the same in every picture: a place is colored by the share of healthy places that score
lower (its healthy quantile), from 0.5, transparent, to 0.999, strong, on a scale that is logarithmic in the
rest above it. Nothing is scaled to the image, so a healthy breast looks healthy. All colors keep their
order and contrast under the common color blindnesses (matplotlib's plasma; Okabe and Ito's palette).
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, FuncNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from rayad.arrays import Grid, GridMask, Image, Mask
from rayad.evaluation import RESEARCH_USE
from rayad.evaluation.shown import THUMBNAIL_PX, DetectorMap, Healthy, View

LOW, HIGH = 0.5, 0.999
"""Healthy quantiles where color begins and where it is strongest."""
TICKS = (0.5, 0.9, 0.99, 0.999)
TRUTH, MASK = "#56b4e9", "#f0e442"
"""Sky blue and yellow of Okabe and Ito: the annotated lesion, and what a detector marks. On heatmaps, which hold
yellow themselves, the mask's outline is white with a dark rim."""
LINES = (("#d55e00", "-"), ("#0072b2", "--"), ("#009e73", "-."), ("#cc79a7", ":"))
CHANGE = 0.5
"""Difference to the healthy version where its color is strongest, share of the full scale; the same everywhere."""
DPI = 110
COMPRESSION = 3
"""Of PNG: half the time of the usual 6, for files of about the same size."""
ROW = 0.085
"""Height of a legend's row, as a share of the histogram under it."""
LONGEST = 4.0
"""Width of a picture over its height, or height over width, up to which it fills its figure."""


def overlay(view: View, detector_map: DetectorMap, *, title: str = "") -> bytes:
    """One image under its heatmap, with mask contour, scale bar and color bar."""
    height = 7.0
    figure = _figure(height * _ratio(view.pixels) + 1.1, height)
    axes = figure.subplots()
    _image(axes, view)
    _heat(axes, view, detector_map.healthy_quantile)
    _outline(axes, view, detector_map.mask)
    _outline_pixels(axes, view.truth)
    _scale_bar(axes, view)
    axes.set_title(title or view.name, fontsize=11)
    marks = ["white outline: marked by the detector"] + ["dashed blue: annotated lesion"] * bool(view.truth.any())
    axes.set_xlabel("; ".join(marks), fontsize=9)
    _color_bar(figure, [axes])
    figure.supxlabel(RESEARCH_USE, fontsize=7)
    return _png(figure)


def explained(view: View, detector_map: DetectorMap, healthy: Healthy) -> bytes:
    """Side by side: the image, the image under its heatmap, its healthy counterfactual, and the difference."""
    height = 5.0
    figure = _figure(4 * height * _ratio(view.pixels) + 2.2, height + 0.5)
    image_axes, heat_axes, healthy_axes, change_axes = grid = figure.subplots(1, 4)
    _image(image_axes, view)
    _scale_bar(image_axes, view)
    _image(heat_axes, view)
    _heat(heat_axes, view, detector_map.healthy_quantile)
    _outline(heat_axes, view, detector_map.mask)
    _gray(healthy_axes, healthy.pixels)
    change = _change(change_axes, healthy)
    heads = [view.name, "heatmap (white: marked)", *_heads(healthy)]
    for axes, head in zip(grid, heads, strict=True):
        _outline_pixels(axes, view.truth)
        axes.set_title(head, fontsize=10)
    _color_bar(figure, [heat_axes])
    bar = figure.colorbar(change, ax=[change_axes], fraction=0.03, pad=0.01, extend="both")
    bar.set_label("difference, share of the full scale", fontsize=9)
    figure.supxlabel(RESEARCH_USE, fontsize=7)
    return _png(figure)


def thumbnail(
    view: View, detector_map: DetectorMap, height_px: int = THUMBNAIL_PX, *, marks: Sequence[tuple[float, float]] = ()
) -> bytes:
    """The overlay alone, without words or bars, for lists of images; the image alone where it is one place.

    Args:
        marks: rows and columns, px of the view, of findings that are numbered.
    """
    figure = Figure(figsize=(height_px * _ratio(view.pixels) / DPI, height_px / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    _image(axes, view)
    if detector_map.healthy_quantile.size > 1:
        _heat(axes, view, detector_map.healthy_quantile)
        _outline(axes, view, detector_map.mask)
    _outline_pixels(axes, view.truth)
    for number, (row, column) in enumerate(marks, 1):
        rim = [withStroke(linewidth=2, foreground="black")]
        axes.text(column, row, str(number), color="white", fontsize=7, ha="center", va="center", path_effects=rim)
    return _png(figure)


def panel(views: Sequence[View], maps: Mapping[str, Sequence[DetectorMap]], healthy: Sequence[Healthy] = ()) -> bytes:
    """Images as rows: image, annotated lesion, then heatmap and mask of each detector.

    The arrangement of Fig. 2 of Dietrichstein et al. (2022), with the distance of mask and lesion in brackets.

    Args:
        views: the images.
        maps: detector -> what it says about each view, in the order of the views.
        healthy: two more columns, the healthy version of each view and the difference to it.

    Raises:
        ValueError: there is no image or no detector.
    """
    if not views or not maps:
        raise ValueError(f"a panel needs images and detectors, got {len(views)} and {len(maps)}")
    columns = 2 + 2 * len(maps) + 2 * bool(healthy)
    windows = [_window(view, next(iter(maps.values()))[i]) for i, view in enumerate(views)]
    tallest = max((bottom - top) / (right - left) for left, right, bottom, top in windows)
    figure = _figure(1.6 * columns + 0.9, (1.6 * tallest + 0.08) * len(views) + 0.5)
    grid = figure.subplots(len(views), columns, squeeze=False)
    for i, view in enumerate(views):
        _fill_row(grid[i, : 2 + 2 * len(maps)], view, [detector_maps[i] for detector_maps in maps.values()])
        if healthy:
            _gray(grid[i, -2], healthy[i].pixels)
            _change(grid[i, -1], healthy[i])
        for axes in grid[i]:
            axes.set_xlim(*windows[i][:2])
            axes.set_ylim(*windows[i][2:])
        _scale_bar(grid[i, 0], view)
    heads = ["image", "annotated lesion", *(f"{name}\n{content}" for name in maps for content in ("heatmap", "mask"))]
    heads += _heads(healthy[0]) if healthy else []
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=9)
    for axes, detector_maps in zip(grid[:, 3::2].T, maps.values(), strict=False):
        for mask_axes, detector_map in zip(axes, detector_maps, strict=True):
            if detector_map.distance is not None:
                head = f"{mask_axes.get_title()} ({detector_map.distance:.1f})"
                mask_axes.set_title(head.strip(), fontsize=9)
    _color_bar(figure, list(grid.ravel()))
    return _png(figure)


def distributions(scores: Mapping[str, Mapping[str, Float[np.ndarray, " n"]]]) -> bytes:
    """Histograms of the scores of healthy places and of places in lesions, one pair of axes a detector.

    After Fig. 3 of Dietrichstein et al. (2022).

    Args:
        scores: detector -> "healthy" and kinds of lesion -> scores of places. Scores beyond the central 99.8 %
            are counted in the outermost bars.
    """
    column_count = min(3, max(1, len(scores)))
    row_count = -(-len(scores) // column_count)
    figure = _figure(4.0 * column_count, 2.9 * row_count + 0.4)
    grid = figure.subplots(row_count, column_count, squeeze=False)
    for axes in grid.ravel()[len(scores) :]:
        axes.set_axis_off()
    for axes, (detector, classes) in zip(grid.ravel(), scores.items(), strict=False):
        _histograms(axes, {name: values for name, values in classes.items() if values.size})
        axes.set_title(detector, fontsize=10)
        axes.set_xlabel("score (higher is more unusual)", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("density of places", fontsize=9)
    return _png(figure)


def _fill_row(row: np.ndarray, view: View, detector_maps: Sequence[DetectorMap]) -> None:
    height, width = view.pixels.shape[:2]
    for axes in row:
        _image(axes, view)
    row[0].set_ylabel(view.name, fontsize=9)
    _fill(row[1], view.truth, TRUTH, (-0.5, width - 0.5, height - 0.5, -0.5))
    for detector_map, heat_axes, mask_axes in zip(detector_maps, row[2::2], row[3::2], strict=True):
        _heat(heat_axes, view, detector_map.healthy_quantile)
        _fill(mask_axes, detector_map.mask, MASK, _extent(view))
        _outline_pixels(mask_axes, view.truth)


def _heads(healthy: Healthy) -> list[str]:
    return [
        f"{healthy.picture} picture\nif it were healthy",
        f"{healthy.picture} picture minus that\n(red: too bright; to ±{CHANGE:g})",
    ]


def _change(axes: Axes, healthy: Healthy) -> AxesImage:
    artist = axes.imshow(healthy.change, cmap="RdBu_r", vmin=-CHANGE, vmax=CHANGE)
    _bare(axes)
    return artist


def _histograms(axes: Axes, classes: Mapping[str, Float[np.ndarray, " n"]]) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if not classes:
        axes.text(0.5, 0.5, "no scores", ha="center", transform=axes.transAxes)
        return
    ends = [np.percentile(values, [0.1, 99.9]) for values in classes.values()]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    bins = np.linspace(low, high if high > low else low + 1, 41)
    lines = iter(LINES * len(classes))
    for name, values in classes.items():
        density, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins, density=True)
        label = f"{name} ({values.size:,} places)"
        if name == "healthy":
            axes.stairs(density, bins, fill=True, color="#bbbbbb", label=label)
            limit = float(np.quantile(values, 0.99))
            axes.axvline(limit, color="#555555", linewidth=1, label="99 % of healthy places lie left")
        else:
            color, style = next(lines)
            axes.plot((bins[1:] + bins[:-1]) / 2, density, color=color, linestyle=style, linewidth=1.8, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(4))  # more labels of five digits touch each other
    legend = axes.legend(fontsize=7, frameon=False, loc="upper left")
    axes.set_ylim(0, (1.05 + ROW * len(legend.get_texts())) * axes.get_ylim()[1])


def _ratio(pixels: np.ndarray) -> float:
    """Width of a picture over its height; longer images are drawn with room beside them."""
    height, width = pixels.shape[:2]
    return min(max(width / height, 1 / LONGEST), LONGEST)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _png(figure: Figure) -> bytes:
    """The figure, drawn once: `savefig` draws it a first time to lay it out."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    facts, buffer = PngInfo(), io.BytesIO()
    facts.add_text("Comment", RESEARCH_USE)
    picture = Picture.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.save(buffer, "PNG", pnginfo=facts, dpi=(DPI, DPI), compress_level=COMPRESSION)
    return buffer.getvalue()


def _image(axes: Axes, view: View) -> None:
    _gray(axes, view.pixels)


def _gray(axes: Axes, pixels: Image) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=max(1e-6, float(np.quantile(pixels, 0.999))))
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _extent(view: View) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the grid's cells; a place at r is the center of pixels [r - s/2, r + s/2)."""
    step = float((view.rows[1] - view.rows[0]) if view.rows.size > 1 else 2 * view.rows[0])
    half = step / 2 + 0.5
    return view.cols[0] - half, view.cols[-1] + step - half, view.rows[-1] + step - half, view.rows[0] - half


def _heat(axes: Axes, view: View, quantile: Grid) -> None:
    axes.imshow(quantile, cmap=color_map(), norm=color_norm(), extent=_extent(view), interpolation="nearest")
    axes.set_xlim(-0.5, view.pixels.shape[1] - 0.5)
    axes.set_ylim(view.pixels.shape[0] - 0.5, -0.5)


def color_norm() -> FuncNorm:
    """Healthy quantiles to shares of the scale, logarithmic in the rest above them."""

    def rest(quantile: np.ndarray) -> np.ndarray:
        return -np.log10(1 - np.clip(quantile, LOW, HIGH))

    return FuncNorm((rest, lambda value: 1 - 10.0 ** -np.asarray(value)), vmin=LOW, vmax=HIGH, clip=True)


def color_map() -> Colormap:
    """plasma, from transparent to strong."""
    levels = np.linspace(0, 1, 256)
    colors = colormaps["plasma"](0.05 + 0.95 * levels)
    colors[:, 3] = 0.8 * np.clip(1.5 * levels, 0, 1)
    return ListedColormap(colors, name="healthy quantile").with_extremes(bad=(0, 0, 0, 0))


def _color_bar(figure: Figure, axes: list[Axes]) -> None:
    mappable = ScalarMappable(color_norm(), color_map())
    bar = figure.colorbar(mappable, ax=axes, ticks=list(TICKS), fraction=0.03, pad=0.01)
    bar.ax.set_facecolor("#777777")
    bar.ax.set_yticklabels([f"{tick:g}" for tick in TICKS], fontsize=9)
    bar.ax.minorticks_off()
    bar.set_label("healthy quantile", fontsize=9)


def _fill(axes: Axes, mask: GridMask, color: str, extent: tuple[float, float, float, float]) -> None:
    filled = np.where(mask, 1.0, np.nan)
    axes.imshow(
        filled, cmap=ListedColormap([color]), vmin=0, vmax=1, alpha=0.75, extent=extent, interpolation="nearest"
    )


def _outline(axes: Axes, view: View, mask: GridMask) -> None:
    """The border of the mask's cells, along their edges."""
    if mask.any():
        left, right, bottom, top = _extent(view)
        fine = np.pad(np.repeat(np.repeat(mask, 4, axis=0), 4, axis=1).astype(float), 1)
        y, x = _centers(top, bottom, fine.shape[0]), _centers(left, right, fine.shape[1])
        lines = axes.contour(x, y, fine, levels=[0.5], colors=["white"], linewidths=1.2)
        lines.set(path_effects=[withStroke(linewidth=2.6, foreground="#222222")])


def _centers(first: float, last: float, count: int) -> Float[np.ndarray, " c"]:
    """Centers of `count` cells, of which all but the first and the last fill the space between the edges."""
    size = (last - first) / (count - 2)
    return first + size * (np.arange(count) - 0.5)


def _outline_pixels(axes: Axes, truth: Mask) -> None:
    if truth.any():
        lines = axes.contour(truth.astype(float), levels=[0.5], colors=[TRUTH], linestyles="--", linewidths=1.5)
        lines.set(path_effects=[withStroke(linewidth=2.6, foreground="#222222")])


def _window(view: View, detector_map: DetectorMap) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the tissue with 5 mm around it; the whole image where there is none."""
    height, width = view.pixels.shape[:2]
    places = np.argwhere(~np.isnan(detector_map.healthy_quantile))
    if places.size == 0:
        return -0.5, width - 0.5, height - 0.5, -0.5
    margin = 5 / view.spacing_mm
    rows, cols = view.rows[places[:, 0]], view.cols[places[:, 1]]
    left, right = max(cols.min() - margin, -0.5), min(cols.max() + margin, width - 0.5)
    bottom, top = min(rows.max() + margin, height - 0.5), max(rows.min() - margin, -0.5)
    return float(left), float(right), float(bottom), float(top)


def _scale_bar(axes: Axes, view: View) -> None:
    """A bar of a round length, at most a third of the width shown, at the lower edge."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    room = (right - left) * view.spacing_mm / 3
    length = max((mm for mm in (1, 2, 5, 10, 20, 50) if mm <= room), default=1)
    x, y = right - 0.06 * (right - left), bottom - 0.04 * (bottom - top)
    start = x - length / view.spacing_mm
    bar = axes.plot([start, x], [y, y], color="white", linewidth=2, solid_capstyle="butt")[0]
    bar.set_path_effects([withStroke(linewidth=4, foreground="black")])
    text_y = y - 0.015 * (bottom - top)
    text = axes.text((start + x) / 2, text_y, f"{length} mm", color="white", fontsize=8, ha="center", va="bottom")
    text.set_path_effects([withStroke(linewidth=2, foreground="black")])
