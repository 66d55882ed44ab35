"""The demo's report: report.json for programs, one self-contained report.html for people, and the benchmark file."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmark import demo_results, write_demo_benchmark

if TYPE_CHECKING:
    from narration import Narrator
    from stage import Demo

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1d2733}
h1{margin-bottom:0}h2{margin-top:2.2rem;border-bottom:1px solid #d8dee6;padding-bottom:.2rem}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:.3rem .6rem;border-bottom:1px solid #e6eaef;text-align:left;vertical-align:top}
th{background:#f4f6f9}.good{color:#0a7d38}.bad{color:#b3261e}pre{background:#f4f6f9;padding:1rem;overflow:auto;font-size:12px}
svg,img{max-width:100%;height:auto}.quiet{color:#66717f}
"""


def write_report(demo: Demo, narrator: Narrator, bench: Path | None) -> None:
    """Write report.json and report.html into the output directory."""
    report = demo.report
    report["lineage"] = demo.control.json("lineage", "emoji")
    report["chapters"] = narrator.chapters
    report["seconds"] = round(narrator.elapsed(), 1)
    report["quick"] = demo.quick
    report["rss_control_plane_mib"] = control_plane_rss_mib(demo)
    (demo.output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False, default=str) + "\n")
    if bench is not None:
        write_demo_benchmark(bench, demo_results(report), seconds=report["seconds"])
    (demo.output / "report.html").write_text(render(demo))
    for kind in ("trainingruns", "modelversions", "engines", "modelservices"):
        demo.control.run("get", kind)


def control_plane_rss_mib(demo: Demo) -> float:
    """Read the resident memory that the control plane reports of itself."""
    port = int(os.environ.get("BELVEDERE_OPERATOR_PORT", "8081"))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("process_resident_memory_bytes "):
                return round(float(line.split()[1]) / 2**20, 1)
    raise ValueError("the control plane's /metrics has no process_resident_memory_bytes")


def render(demo: Demo) -> str:
    """Return the whole page, pictures included."""
    report = demo.report
    sheet = base64.b64encode((demo.output / "contact-sheet.png").read_bytes()).decode()
    parts = [
        "<!doctype html><meta charset=utf-8><title>Belvedere demo</title><style>" + STYLE + "</style>",
        f"<h1>From pictures to a safely replaced model</h1><p class=quiet>{report['seconds']:.0f} s in all · gateway {report['url']} · {report['backend']}</p>",
        "<h2>Training</h2>" + _training_chart(report["versions"]) + _table(_version_rows(report["versions"])),
        "<h2>Engines</h2>"
        + _table(report["engines"], ("name", "model", "cosine_min", "top1_agreement", "p50_ms", "torch_p50_ms")),
        f"<h2>Search through the served model</h2><img src='data:image/png;base64,{sheet}' alt='contact sheet'>",
        f"<p class=quiet>recall of the served engine over {report['contact_sheet']['pictures']} never-seen drawings: {_pairs(report['contact_sheet']['served_recall'])}</p>",
    ]
    for rollout in report["rollouts"]:
        parts.append(_rollout_section(demo, rollout))
    parts += [
        "<h2>Load rises and falls</h2>" + _table(report["scaling"], ("time", "decision", "signal", "reason")),
        f"<p class=quiet>{_pairs(report['scaling_clients'])}</p>",
        "<h2>Lineage</h2>" + lineage_svg(report["lineage"]),
        "<h2>Where the time went</h2>" + _table(report["chapters"], ("title", "begin", "seconds")),
    ]
    return "\n".join(parts)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...] | None = None) -> str:
    if not rows:
        return "<p class=quiet>nothing</p>"
    names = columns or tuple(rows[0])
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in names) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape("" if value is None else str(value))


def _version_rows(versions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for version in versions:
        row = {
            "version": version["name"],
            "digest": version["digest"][:19],
            "pairs": version["pairs"],
            "images/s": round(version["images_per_second"]),
        }
        for split in ("heldout_style", "heldout_concepts", "hard_style"):
            for language in ("en", "zh"):
                recall = version["metrics"].get(split, {}).get(language, {})
                row[f"{split} {language} R@1/5/10"] = " / ".join(
                    f"{recall.get(k, float('nan')):.3f}" for k in ("r1", "r5", "r10")
                )
        rows.append(row)
    return rows


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _training_chart(versions: list[dict[str, Any]]) -> str:
    """Loss and recall against pairs seen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2))
    for version in versions:
        curves = version["curves"]
        left.plot(*zip(*curves["loss"], strict=True), label=version["name"])
        points = [(p["pairs"], p["heldout_style_en_r1"]) for p in curves["recall"]]
        right.plot(*zip(*points, strict=True), marker="o", label=version["name"])
    left.set(xlabel="image-text pairs", ylabel="loss", title="contrastive loss")
    right.set(xlabel="image-text pairs", ylabel="recall@1", title="text → picture, a drawing style never seen")
    left.legend(frameon=False)
    right.set_ylim(bottom=0)
    return _svg(figure)


def _rollout_section(demo: Demo, rollout: dict[str, Any]) -> str:
    """One rollout: what was decided, why, and the curves behind it."""
    good = rollout["outcome"] == "Promoted"
    title = f"{rollout['candidate']}: <span class={'good' if good else 'bad'}>{rollout['outcome'].lower()}</span>"
    seconds = rollout["seconds_to_decision"]
    facts = (
        (f"decided {seconds:.0f} s after its first weight" if seconds is not None else "never got weight")
        + f"; first signal {html.escape(str(rollout['first_signal']))}; {rollout['candidate_requests']} requests reached it and {rollout['candidate_errors']} failed; clients saw {rollout['client_errors']} errors in {rollout['client_requests']} requests"
    )
    return (
        f"<h2>{title}</h2><p>{facts}</p>"
        + _rollout_chart(demo, rollout)
        + _table(rollout["decisions"], ("time", "decision", "signal", "reason"))
    )


def _rollout_chart(demo: Demo, rollout: dict[str, Any]) -> str:
    """Weight, e-values and latency over the time of the rollout."""
    samples = [s for s in demo.timeline.samples if rollout["begin"] <= s["time"] <= rollout["end"]]
    seconds = [s["time"] - rollout["begin"] for s in samples]
    figure, axes = plt.subplots(1, 3, figsize=(13, 2.8))
    axes[0].step(seconds, [s["weight"] for s in samples], where="post")
    axes[0].set(title="candidate's weight, %", xlabel="seconds", ylim=(-2, 102))
    for kind, style in (("harm", "-"), ("safe", "--")):
        gates = sorted({gate for s in samples for gate in s["evidence"].get(kind, {})})
        for gate in gates:
            axes[1].plot(
                seconds,
                [max(1e-3, s["evidence"].get(kind, {}).get(gate) or float("nan")) for s in samples],
                style,
                label=f"{gate} {kind}",
            )
    axes[1].axhline(20, color="grey", linewidth=0.8, linestyle=":")
    axes[1].set(title="e-values (decide at the dotted line)", xlabel="seconds", yscale="log")
    if axes[1].lines[:-1]:
        axes[1].legend(frameon=False, fontsize=7)
    for side in ("stable", "candidate"):
        axes[2].plot(
            seconds, [s[f"{side}_p95"] if s[f"{side}_p95"] is not None else float("nan") for s in samples], label=side
        )
    axes[2].set(title="p95, ms", xlabel="seconds", ylim=(0, None))
    axes[2].legend(frameon=False, fontsize=8)
    return _svg(figure)


def lineage_svg(lineage: dict[str, Any]) -> str:
    """Draw the graph from data to service, left to right by depth."""
    nodes, edges = lineage["nodes"], lineage["edges"]
    depth = {node["id"]: 0 for node in nodes}
    for _ in nodes:
        for edge in edges:
            depth[edge["to"]] = max(depth[edge["to"]], depth[edge["from"]] + 1)
    columns: dict[int, list[dict[str, Any]]] = {}
    for node in nodes:
        columns.setdefault(depth[node["id"]], []).append(node)
    place = {
        node["id"]: (20 + 230 * column, 20 + 62 * row)
        for column, members in columns.items()
        for row, node in enumerate(members)
    }
    height = 40 + 62 * max((len(members) for members in columns.values()), default=1)
    lines = [
        f"<svg viewBox='0 0 {230 * len(columns) + 20} {height}' xmlns='http://www.w3.org/2000/svg' font-family='system-ui' font-size='11'>"
    ]
    for edge in edges:
        (x1, y1), (x2, y2) = place[edge["from"]], place[edge["to"]]
        lines.append(
            f"<path d='M{x1 + 200} {y1 + 22} C{x1 + 215} {y1 + 22} {x2 - 15} {y2 + 22} {x2} {y2 + 22}' fill='none' stroke='#8a97a8'/>"
        )
    for node in nodes:
        x, y = place[node["id"]]
        lines.append(f"<rect x='{x}' y='{y}' width='200' height='44' rx='6' fill='#f4f6f9' stroke='#b9c3cf'/>")
        lines.append(f"<text x='{x + 10}' y='{y + 18}' fill='#66717f'>{html.escape(str(node['kind']))}</text>")
        lines.append(f"<text x='{x + 10}' y='{y + 34}'>{html.escape(str(node['name'])[:32])}</text>")
    return "".join([*lines, "</svg>"])
