"""The tables of a benchmark, as they are printed and committed."""

from __future__ import annotations

from emkit.bench.measure import Cost
from emkit.bench.merge import median


def markdown(report: dict) -> str:
    """The whole report as Markdown: where and when, the command, and a table of costs and ratios."""
    machine = report["machine"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    load = f"{machine['load_at_start']:.1f} at the start, {report['load_at_end']:.1f} at the end"
    lines = [
        "# Merging: time and memory",
        "",
        f"    {report['command']}",
        "",
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB{gpu}; load "
        f"average {load} (above {machine['cores']}, other work took turns with this). {versions}.",
        "",
    ]
    if report["methods"]:
        lines += [*_methods(report), ""]
    if report["wudi"]:
        lines += [*_wudi(report["wudi"]), ""]
    return "\n".join(lines)


def _methods(report: dict) -> list[str]:
    shape, idle = report["shape"], report["interpreter"]["anonymous_mb"]
    lines = [
        f"A Llama of {shape['parameters'] / 1e6:.0f}M parameters ({shape['hidden']} wide, {shape['layers']} layers), "
        f"bf16: a base of {shape['parameters'] * 2 / 1e9:.2f} GB and {shape['experts']} experts, read from the page "
        "cache. Medians over the runs; the programs took turns. Wall and processor seconds, from the start of the "
        "process to its end; megabytes (10⁶) at their peak, anonymous (RssAnon) and resident, which also counts the "
        f"pages of mapped inputs. An interpreter with torch imported has {idle:.0f} MB anonymous.",
        "",
        "| method | program | runs | wall s | cpu s | anonymous MB | above torch | resident MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios = []
    for name, programs in report["methods"].items():
        found = {program: median(costs) for program, costs in programs.items()}
        for program, cost in found.items():
            lines.append(f"| {name} | {program} | {len(programs[program])} | {_cells(cost, idle)} |")
        if "mergekit" in found:
            ours, theirs = found["emkit"], found["mergekit"]
            parts = [_ratio(getattr(ours, key), getattr(theirs, key)) for key in ("wall_s", "cpu_s", "anonymous_mb")]
            above = _ratio(ours.anonymous_mb - idle, theirs.anonymous_mb - idle)
            ratios.append(f"| {name} | {' | '.join(parts)} | {above} |")
    if ratios:
        head = "| emkit / mergekit | wall | cpu | anonymous | anonymous above torch |"
        lines += ["", head, "|---|---|---|---|---|", *ratios]
    return lines


def _cells(cost: Cost, idle: float) -> str:
    seconds = f"{cost.wall_s:.1f} | {cost.cpu_s:.1f}"
    return f"{seconds} | {cost.anonymous_mb:.0f} | {cost.anonymous_mb - idle:.0f} | {cost.resident_mb:.0f}"


def _wudi(entries: list[dict]) -> list[str]:
    first = entries[0]
    lines = [
        f"WUDI, {first['iterations']} Adam steps, K = {first['experts']}: seconds that the Gram form (its set-up "
        "included) and the direct form take.",
        "",
        "| matrix | Gram form s | direct form s | direct / Gram |",
        "|---|---|---|---|",
    ]
    for entry in entries:
        ours, direct = (entry[form]["iterations_s"] for form in ("emkit", "direct"))
        lines.append(f"| {entry['rows']} × {entry['columns']} | {ours:.2f} | {direct:.2f} | {direct / ours:.1f} |")
    weights = (4, 2, 1)  # of a block: q, k, v, o; gate, up; down
    block = [
        sum(w * entry[form]["iterations_s"] for w, entry in zip(weights, entries, strict=True))
        for form in ("emkit", "direct")
    ]
    lines.append(f"| a block's seven matrices | {block[0]:.2f} | {block[1]:.2f} | {block[1] / block[0]:.1f} |")
    return lines


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f} (1 / {theirs / ours:.1f})"
