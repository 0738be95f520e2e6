"""Tables of what was measured, in Markdown, out of the stored JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks.approximate.cases import CURVE, TAUS
from benchmarks.approximate.curve import Curve
from benchmarks.approximate.quality import COVERAGE, TARGET, TUNED
from benchmarks.approximate.timing import ratios
from kcompile import Tuning
from kcompile.bounds import share_bound

Row = list[str]
CURVE_IMAGES = 30  # that Krypton's curve is fitted to (as there); it is tested on the others


def table(head: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def methods_in(part: dict[str, Any]) -> list[str]:
    """The methods that were run on any image of a set."""
    return list(dict.fromkeys(method for one in part.values() for method in one if method != "exact"))


def values(part: dict[str, Any], method: str, key: str = "ssim") -> np.ndarray[Any, Any]:
    """One number per image of a method; empty if it could not be run."""
    return np.array([one[method][key] for one in part.values() if key in one.get(method, {})])


def speeds(part: dict[str, Any], method: str) -> np.ndarray[Any, Any]:
    """Times the exact map's speed, per image that the method was run on."""
    return values(part, method, "exact_cpu") / values(part, method, "cpu")


def quality_row(part: dict[str, Any], method: str) -> Row:
    """A method on a set: similarities, how often the target was met, and its speed beside the exact map."""
    found, jet = values(part, method), values(part, method, "jet")
    if not len(found):
        return [method, "not available for this network"]
    met = int((found >= TARGET).sum())
    rejected = binom.cdf(met, len(found), COVERAGE) <= 0.05
    return [
        method,
        f"{found.mean():.3f}",
        f"{np.quantile(found, 0.1):.3f}",
        f"{found.min():.3f}",
        f"{jet.mean():.3f}",
        f"{met} of {len(found)}" + (" (rejected)" if rejected else ""),
        f"{max(0.0, TARGET - found.min()):.3f}",
        f"{np.median(speeds(part, method)):.1f}x",
    ]


HEAD = ["method", "SSIM mean", "lowest tenth", "worst", "SSIM of jet_r", f"met {TARGET}", "worst shortfall", "of exact"]


def quality(name: str, facts: dict[str, Any]) -> str:
    """All methods of a network, on held-out images and on other textures."""
    text = f"### {name}\n\n"
    for label, part in facts.get("sets", {}).items():
        if not part:
            continue
        methods = [TUNED, *(method for method in methods_in(part) if method != TUNED)]
        rows = [quality_row(part, method) for method in methods]
        title = {"test": "held-out images", "other": "other textures, without a promise"}[label]
        text += f"{len(part)} {title}:\n\n{table(HEAD, [row + [''] * (len(HEAD) - len(row)) for row in rows])}\n"
    return text + krypton(facts)


def krypton(facts: dict[str, Any]) -> str:
    """What the fitted curve promises and keeps."""
    picked = curve_pick(facts)
    if picked is None:
        return ""
    tau, found = picked
    if tau == 1:
        return "Krypton's curve reaches the target at no threshold below 1.\n"
    met = int((found >= TARGET).sum())
    return (
        f"Krypton's curve through the means of {CURVE_IMAGES} images picks the threshold {tau:g}: it met {TARGET} on "
        f"{met} of {len(found)} others, worst shortfall {max(0.0, TARGET - found.min()):.3f}.\n"
    )


def curve_pick(facts: dict[str, Any]) -> tuple[float, np.ndarray[Any, Any]] | None:
    """The threshold that the curve picks from some images, and its similarities on the others; None without any."""
    part = facts.get("sets", {}).get("test", {})
    columns = [values(part, method) for method in CURVE]
    if min(map(len, columns)) <= CURVE_IMAGES:
        return None
    taus, all_found = np.array([1.0, *TAUS]), np.stack([np.ones(len(columns[0])), *columns], axis=1)
    tau = Curve.fit(taus, all_found[:CURVE_IMAGES]).pick(TARGET, np.arange(min(TAUS), 1.0, 0.01))
    above = [t for t in TAUS if t >= tau - 1e-9]  # the next one that was measured, which is safer
    return (
        (min(above), all_found[CURVE_IMAGES:, 1 + TAUS.index(min(above))])
        if above
        else (1.0, all_found[CURVE_IMAGES:, 0])
    )


def certificate(name: str, tuning: Tuning, facts: dict[str, Any]) -> Row:
    """A network's certificate and what came of it."""
    part = facts.get("sets", {}).get("test", {})
    found = values(part, TUNED)
    met = int((found >= TARGET).sum())
    tail = binom.cdf(met, len(found), COVERAGE)
    return [
        name,
        str(tuning.approximation),
        f"{tuning.met} of {tuning.images}, ≥ {tuning.bound:.1%}",
        f"{met} of {len(found)} (p {tail:.2f}, ≥ {share_bound(met, len(found), 0.95):.1%})",
        f"{found.min():.3f}",
        f"{max(0.0, TARGET - found.min()):.3f}",
    ]


def speed_row(name: str, found: dict[str, Any], setting: str) -> Row:
    """A network's times at one setting."""
    over = {against: ratios(found, setting, against, "cpu") for against in ("eager", "exact")}
    clock = ratios(found, setting, "eager")
    exact = ratios(found, "exact", "eager", "cpu")
    return [
        name,
        setting,
        *(f"{median:.1f} ({low:.1f} … {high:.1f})" for median, low, high in over.values()),
        f"{exact[0]:.1f}",
        f"{clock[0]:.1f}",
    ]


def whole(facts: dict[str, dict[str, Any]], times: dict[str, Any], folder: Path) -> str:
    """The report of all that is stored."""
    rows = [certificate(name, Tuning.load(folder / f"tuning-{name}.json"), one) for name, one in facts.items()]
    head = ["network", "certified setting", "certified by", "held-out images that met it", "worst", "shortfall"]
    parts = [
        "# Approximate maps\n\n`python -m benchmarks.approximate`; benchmarks/README.md says what the columns mean.\n",
        f"## Is the promise kept?\n\nSSIM ≥ {TARGET} for ≥ {COVERAGE:.0%} of the images, 90 % confidence.\n",
        table(head, rows),
    ]
    heads = ["network", "setting", "over eager (range)", "over exact (range)", "exact over eager", "by the clock"]
    for key, title in (
        ("networks", "## Whole maps, at the certified setting"),
        ("extrapolated", "## Extrapolated: full-size networks, random weights, at the setting of their trained kin"),
    ):
        if key in times:
            rows = [speed_row(name, found, TUNED) for name, found in times[key].items()]
            rows = [[row[0], times[key][row[0]].get("setting", row[1]), *row[2:]] for row in rows]
            parts += [
                f"{title}\n\n{times['machine']['summary']}; ratios of processor time, in pairs.\n",
                table(heads, rows),
            ]
    parts.append("## Methods\n")
    parts += [quality(name, one) for name, one in facts.items()]
    return "\n".join(parts)


def study_table(name: str, found: dict[str, Any]) -> str:
    """A network's settings on few images."""
    rows = [
        [method, "not available here"] + [""] * 3
        if "error" in one
        else [
            method,
            f"{np.mean(one['ssim']):.3f}",
            f"{min(one['ssim']):.3f}",
            f"{one['work']:.2f}",
            str(len(one["ssim"])),
        ]
        for method, one in found.items()
    ]
    return f"### {name}\n\n" + table(["setting", "SSIM mean", "worst", "work of a position", "images"], rows)


def studied(facts: dict[str, Any]) -> str:
    """What the stage study found."""
    if "networks" not in facts:
        return ""
    text = "\n## A closer look, on few images\n\nWork by the cost model, as a share of the exact map's.\n\n"
    text += "\n".join(study_table(name, one) for name, one in facts["networks"].items())
    if (found := facts.get("gradients")) is not None:
        rows = [
            [count, f"{one['gradients']:.2f}", f"{1e3 * one['position']:.2f}"]
            for count, one in found["targets"].items()
        ]
        text += f"\n### Gradients of many classes: {found['network']}, cut behind {found['cut']}\n\n"
        text += table(["classes", "gradients, s of processor time per map", "ms per position"], rows)
    return text
