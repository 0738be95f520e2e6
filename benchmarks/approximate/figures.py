"""Figures like Krypton's 9, 12 and 13, and the front of quality and speed, out of the stored JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.approximate.cases import CURVE, TAUS
from benchmarks.approximate.curve import Curve
from benchmarks.approximate.quality import TARGET, TUNED
from benchmarks.approximate.report import CURVE_IMAGES, curve_pick, methods_in, speeds, values

Facts = dict[str, dict[str, Any]]
"""By network what `quality.Store` holds."""


def draw_all(facts: Facts, drills: dict[str, Any] | None, folder: Path) -> list[Path]:
    """Draw what there is data for; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [_save(front(facts), folder / "approximate-front.png")]
    with_taus = {name: one for name, one in facts.items() if curve_pick(one) is not None}
    if with_taus:
        made.append(_save(threshold(with_taus), folder / "approximate-threshold.png"))
    made.append(_save(shortfall(facts), folder / "approximate-shortfall.png"))
    if drills:
        made.append(_save(drilldown(drills), folder / "approximate-drilldown.png"))
    return made


KINDS = {
    "tuned": ("*", "#d8152f"),
    "linear tail": ("o", "#1b3fd6"),
    "threshold": ("s", "#777777"),
    "drill-down": ("^", "#00876c"),
    "hierarchical": ("v", "#00876c"),
    "extents": ("D", "#8a4fbf"),
    "held gates": ("P", "#c77700"),
    "linear gates": ("X", "#c77700"),
    "bfloat16": ("h", "#222222"),
}
"""Marker and colour by how a method's name begins."""
LEAST = 0.5  # SSIM that the front shows
PER_ROW = 3  # panels


def front(facts: Facts) -> Figure:
    """Speed over the exact map and lowest tenth of the similarities, a point per method, a panel per network.

    Named are the methods on the front alone: nothing is both faster and better.
    """
    figure, panels = _panels(len(facts))
    for axes, (name, one) in zip(panels, facts.items(), strict=True):
        part, told = one["sets"]["test"], set()
        places = {
            method: (float(np.median(speeds(part, method))), float(np.quantile(values(part, method), 0.1)))
            for method in methods_in(part)
            if len(values(part, method))
        }
        for method, at in places.items():
            kind = next((kind for kind in KINDS if method.startswith(kind)), None)
            if kind is None:
                continue
            marker, colour = KINDS[kind]
            label = None if kind in told else kind
            told.add(kind)
            axes.plot(*at, marker, color=colour, markersize=14 if kind == "tuned" else 6, label=label)
            beaten = any(x > at[0] and y > at[1] for x, y in places.values())
            if not beaten and at[1] > LEAST and kind != TUNED:
                text = method.removeprefix(kind).strip(", ")
                axes.annotate(text, at, (4, 4), textcoords="offset points", fontsize=6, rotation=25)
        axes.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="times the exact map's speed", xscale="log", ylim=(LEAST, 1.04))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.legend(fontsize=6, loc="lower left")
    for axes in panels[::PER_ROW]:
        axes.set_ylabel("SSIM that 90 % of the images reach")
    return figure


def threshold(facts: Facts) -> Figure:
    """SSIM over the threshold with the fitted curve, and the speedup over the exact map (figures 9a and 12)."""
    figure, panels = _panels(2)
    for colour, (name, one) in zip(("#1b3fd6", "#d8152f", "#00876c", "#777777"), facts.items(), strict=False):
        part = one["sets"]["test"]
        columns = np.stack([values(part, method) for method in CURVE], axis=1)
        for tau, column in zip(TAUS, columns.T, strict=True):
            panels[0].plot(np.full(len(column), tau), column, ".", color=colour, markersize=2, alpha=0.5)
        fine = np.linspace(min(TAUS), 1, 50)
        taus = np.array([1.0, *TAUS])
        fitted = Curve.fit(taus, np.concatenate([np.ones((len(columns), 1)), columns], axis=1)[:CURVE_IMAGES])
        panels[0].plot(fine, fitted.at(fine), color=colour, label=name)
        gained = [1.0, *(float(np.median(speeds(part, f"threshold {tau:g}"))) for tau in TAUS)]
        panels[1].plot(taus, gained, "o-", color=colour, label=name)
    panels[0].axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
    panels[0].set(xlabel="threshold", ylabel="SSIM", title="a point per image, curves of degree two")
    panels[1].set(xlabel="threshold", ylabel="times the exact map's speed", title="gained over the exact map")
    panels[0].legend()
    return figure


def shortfall(facts: Facts) -> Figure:
    """Share of the held-out images over their deviation from the target (figure 9b): certified, and by the curve."""
    figure, panels = _panels(len(facts))
    for axes, (name, one) in zip(panels, facts.items(), strict=True):
        lines = {"certified": values(one["sets"]["test"], TUNED)}
        if (picked := curve_pick(one)) is not None:
            lines[f"Krypton's curve (threshold {picked[0]:g})"] = picked[1]
        for label, found in lines.items():
            off = np.sort(found - TARGET)
            axes.step(off, np.arange(1, len(off) + 1) / len(off), where="post", label=label)
        axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axes.axhline(0.1, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel=f"SSIM − {TARGET}", ylim=(0, 1))
        axes.legend(fontsize=7)
    panels[0].set_ylabel("share of the held-out images")
    return figure


def drilldown(drills: dict[str, Any]) -> Figure:
    """Speedup of drill-down over the share r and over the first stride: by eq. 30, and measured (figure 13)."""
    figure, panels = _panels(2)
    for axes, label in zip(panels, ("share r, first stride x4", "first stride (times the last), r 0.25"), strict=True):
        part = drills[label]
        axes.plot(part["at"], part["theory"], "k--", label="eq. 30")
        axes.plot(part["at"], part["measured"], "o-", color="#1b3fd6", label="measured (processor time)")
        axes.set(xlabel=label, ylabel="times the exact map's speed")
        axes.legend(fontsize=8)
    return figure


def _panels(count: int) -> tuple[Figure, list[Any]]:
    rows, columns = -(-count // PER_ROW), min(count, PER_ROW)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=90)
    return path
