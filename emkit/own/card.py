"""A merged model's card: method, formula, coefficients, inputs with their hashes, versions and the command."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import yaml

from emkit.merging import Merge
from emkit.methods import Method
from emkit.own import hub

LIBRARIES = ("torch", "transformers", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """emkit's, Python's and the libraries' versions."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"emkit": importlib.metadata.version("emkit"), "python": platform.python_version(), **found}


def coefficients(merge: Merge) -> dict[str, Any]:
    """What the experts were weighted with: λ, or of learned coefficients each expert's mean, least and largest."""
    if merge.learned is None:
        return {} if merge.scale is None else {"scale": merge.scale}
    found = merge.learned.coefficients
    each = {}
    for k, name in enumerate(found.experts):
        own = [float(x) for value in found.values.values() for x in value[k]]
        each[name] = {"mean": sum(own) / len(own), "min": min(own), "max": max(own), "count": len(own)}
    return {"learned": each}


def text(report: Mapping[str, Any], method: Method, sources: Mapping[str, str]) -> str:
    """README.md of the merged model, from its report (see :func:`emkit.own.merge.run`)."""
    inputs = report["inputs"]
    names = [entry["name"] for entry in inputs.values()]
    head = {"library_name": "transformers", "tags": ["merge", "emkit", method.name.replace("_", "-")]}
    if all(hub.is_id(name) for name in names):
        head["base_model"] = [name.partition("@")[0] for name in names]
    title = method.about.split(":")[0]
    rows = [
        f"| {label} | `{entry['name']}` | {_distance(report['distances'].get(label))} | `{entry['sha256']}` |"
        for label, entry in inputs.items()
    ]
    options = [f"| `{key}` | `{_plain(value)}` | {sources[key]} |" for key, value in report["options"].items()]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {title} of {', '.join(list(inputs)[1:])}",
        f"Made by emkit {report['versions']['emkit']}. {report['merged_tensors']} of {report['tensors']} tensors are "
        f"merged, {_rule(report)}; all others are the base's. Tokenizer and chat template: {report['tokenizer']}.",
        f"## Method\n\n{method.about}",
        f"## Coefficients\n\n{_coefficients(report['coefficients'])}",
        "## Inputs\n\n| model | from | ‖τ‖/‖θ‖ | sha256 of its tensors |\n|---|---|---|---|\n" + "\n".join(rows),
    ]
    if report["left_out"]:
        lines = [f"- {label}: {what}" for label, found in report["left_out"].items() for what in found]
        parts.append("## What is not in this model\n\n" + "\n".join(lines))
    remarks = [*report["warnings"], *filter(None, [code(report["missing_code"], names[0])])]
    if remarks:
        parts.append("## What differs\n\n" + "\n".join(f"- {remark}" for remark in remarks))
    if options:
        parts.append("## Options\n\n| option | value | source |\n|---|---|---|\n" + "\n".join(options))
    if report["calibration"]:
        parts.append("## Calibration\n\n" + "\n".join(_calibration(*entry) for entry in report["calibration"].items()))
    made = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    parts.append(f"## How it was made\n\n```\n{report['command']}\n```\n\nSeed {report['seed']}; {made}.")
    parts.append(f"```yaml\n{yaml.safe_dump(report['recipe'], sort_keys=False, allow_unicode=True)}```")
    return "\n\n".join(parts) + "\n"


def code(missing: list[str], base: str) -> str | None:
    """A remark on the code files that the base's configuration names and the merged model's does not."""
    if not missing:
        return None
    return (
        f"the configuration names code of the model's own ({', '.join(missing)}), which emkit neither runs nor copies; "
        f"to load the merged model with that code, copy the files, and `auto_map` of config.json, from {base}"
    )


def _distance(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"


def _rule(report: Mapping[str, Any]) -> str:
    if report["recipe"].get("tensors") == "all":
        return "every one of floating point"
    return f"those of the backbone `{report['backbone']}` (the blocks' weight matrices)"


def _coefficients(found: Mapping[str, Any]) -> str:
    if "learned" in found:
        head = "| expert | mean | least | largest | number |\n|---|---|---|---|---|\n"
        rows = [
            f"| {n} | {e['mean']:.4f} | {e['min']:.4f} | {e['max']:.4f} | {e['count']} |"
            for n, e in found["learned"].items()
        ]
        return head + "\n".join(rows) + "\n\nAll of them: `coefficients.json` (`emkit coefficients show`)."
    if "scale" in found:
        return f"λ = {found['scale']:g} for every tensor."
    return "None: the method has no coefficients."


def _calibration(name: str, entry: Mapping[str, Any]) -> str:
    return f"- {name}: {entry['samples']} samples, {entry['response_tokens']} response tokens, `{entry['sha256']}`"


def _plain(value: Any) -> str:
    return str(value).replace("|", "\\|")
