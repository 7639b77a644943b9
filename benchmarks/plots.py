"""Plots of results, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.tables import etcd_of
from rendezvous.bench.contenders import Job

Rows = list[dict[str, Any]]

_STYLES = {
    "etcd-v3": {"color": "tab:blue", "marker": "o"},
    "etcd-v3, coroutines": {"color": "tab:blue", "marker": "o", "linestyle": "--"},
    "etcd-v2": {"color": "tab:green", "marker": "s"},
    "etcd": {"color": "tab:olive", "marker": "^"},
    "torch etcd-v2": {"color": "tab:red", "marker": "s"},
    "torch etcd": {"color": "tab:orange", "marker": "^"},
    "torch c10d": {"color": "tab:purple", "marker": "D"},
    "floor": {"color": "tab:gray", "linestyle": ":"},
}


def formation(rows: Rows, axes: Any, etcd: str) -> None:
    """Draw the seconds by the number of nodes."""
    for name, style in _STYLES.items():
        points = [(row["nodes"], row["seconds"]) for row in rows if row["contender"] == name and "seconds" in row]
        if points:
            label = f"{name} (bare requests)" if CONTENDERS[name].floor else name
            axes.plot(*zip(*points, strict=True), label=label, **style)
        failed = [row["nodes"] for row in rows if row["contender"] == name and "failed" in row]
        if failed:
            axes.plot(
                failed, [Job.timeout] * len(failed), color=style["color"], marker="x", markersize=10, linestyle="none"
            )
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="seconds until the world has formed")
    axes.set_title(
        f"Forming a world: nodes and one {etcd} on two cores (x: failed, or not within {Job.timeout:g} s)",
        fontsize=10,
    )
    axes.legend(fontsize=8)


def state(rows: Rows, axes: Any, etcd: str) -> None:
    """Draw the time of a swap cycle by the number of nodes."""
    for name, color in (("compiled", "tab:blue"), ("torch", "tab:red"), ("pure", "tab:gray")):
        points = [(row["nodes"], row["cycle_us"]) for row in rows if row["contender"] == name and "cycle_us" in row]
        if points:
            label = "torch's pickle" if name == "torch" else name
            axes.plot(*zip(*points, strict=True), label=label, color=color, marker="o")
    (write,) = [row for row in rows if row["contender"] == "etcd"]
    axes.axhline(write["round_trip_us"], color="black", linestyle=":", label=f"a write to {etcd}")
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="µs")
    axes.set_title("One swap cycle of the etcd-v2 state: decode, expire, join, encode", fontsize=10)
    axes.legend(fontsize=8)


def scale(rows: Rows, axes: Any, etcd: str) -> None:
    """Draw the seconds of real and predicted worlds by the number of nodes."""
    checks = [row for row in rows if row["part"] == "check" and "failed" not in row]
    predictions = [row for row in rows if row["part"] == "prediction" and "failed" not in row]
    here = f"this machine with {etcd}"
    lines = {
        f"{here}, real": [(row["nodes"], row["real"]["seconds"]) for row in checks],
        f"{here}, predicted": [(row["nodes"], row["predicted"]["formation"]["seconds"]) for row in checks],
        "etcd's published figures, predicted": [(row["nodes"], row["formation"]["seconds"]) for row in predictions],
    }
    styles = ({"color": "tab:blue", "marker": "o"}, {"color": "tab:blue", "linestyle": "--"}, {"color": "tab:green"})
    for (label, points), style in zip(lines.items(), styles, strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **{"marker": "x", **style})
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="seconds until the world has formed")
    axes.set_title("Forming a world: predictions of the model, and real worlds to check it", fontsize=10)
    axes.legend(fontsize=8)


PLOTS: dict[str, Callable[[Rows, Any, str], None]] = {"formation": formation, "state": state, "scale": scale}
"""The benchmarks that have a plot. Each function takes the rows, the axes, and the version of the etcd."""


def draw(name: str, result: dict[str, Any], folder: Path) -> None:
    """Draw the plot of a benchmark's result into ``folder``, as ``name.png`` and ``name.svg``."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "the same results make the same file"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    PLOTS[name](result["rows"], axes, etcd_of(result))
    axes.grid(which="both", alpha=0.2)
    figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)
