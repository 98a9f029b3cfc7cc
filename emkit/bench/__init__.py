"""``emkit bench …``: what emkit promises of speed and memory, measured, with the machine that it was measured on."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parsers(commands) -> None:
    """Add ``bench`` and its actions to the command line."""
    bench = commands.add_parser("bench", description="Measure speed and memory; kept under results/bench.")
    actions = bench.add_subparsers(required=True, metavar="ACTION")
    fit = actions.add_parser("fit", help="fits of coefficients: against bare passes, autograd and the authors' way")
    fit.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of fit.json and fit.md")
    fit.add_argument("--rounds", type=int, default=5, help="alternating rounds of each timing")
    fit.add_argument("--threads", type=int, default=2)
    fit.set_defaults(call=_fit)
    merge = actions.add_parser("merge", help="merges by emkit and by mergekit, on random checkpoints of a stated size")
    merge.add_argument("--parameters", type=float, default=336e6, help="about how many, in the shapes of a Llama, bf16")
    merge.add_argument("--experts", type=int, default=3)
    merge.add_argument(
        "--methods", nargs="+", default=["task_arithmetic", "ties", "dare_ties"], help="these, and wudi (K = 5)"
    )
    merge.add_argument("--mergekit", help="path of mergekit-yaml (default: the one on the PATH, if there is one)")
    merge.add_argument("--no-mergekit", action="store_true", help="measure emkit alone")
    merge.add_argument("--repeats", type=int, default=1, help="runs of each program and method")
    merge.add_argument("--iterations", type=int, default=100, help="WUDI's steps")
    merge.add_argument("--work", type=Path, default=Path("build/bench"), help="where the checkpoints are made")
    merge.add_argument("--keep", action="store_true", help="keep them for another run")
    merge.add_argument("--out", type=Path, help="write NAME.json and NAME.md too, such as results/bench/merge-2-cores")
    merge.set_defaults(call=_merge)


def _fit(options) -> int:
    from emkit.bench import fit

    return fit.main(options.out, options.rounds, options.threads)


def _merge(options: argparse.Namespace) -> None:
    import shutil
    import sys

    from emkit.bench import merge, merge_report
    from emkit.files import atomic_write, write_json

    program = None if options.no_mergekit else merge.find_mergekit(options.mergekit)
    wanted = merge.Options(
        int(options.parameters),
        options.experts,
        options.methods,
        program,
        options.work,
        options.repeats,
        options.iterations,
    )
    try:
        found = merge.bench(wanted, say=lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        if not options.keep:
            shutil.rmtree(wanted.folder, ignore_errors=True)
    text = merge_report.markdown(found)
    print(text)
    if options.out is not None:
        write_json(options.out.with_suffix(".json"), found)
        with atomic_write(options.out.with_suffix(".md")) as part:
            part.write_text(text, encoding="utf-8")
