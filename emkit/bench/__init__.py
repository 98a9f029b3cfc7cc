"""``emkit bench …``: what emkit promises of speed and memory, measured, with the machine that it was measured on."""

from __future__ import annotations

from pathlib import Path

import click

from emkit.command_line import PATH, Groups


@click.group(cls=Groups)
def bench() -> None:
    """Time fits and merges against other ways of doing them."""


@bench.command("fit")
@click.option("--out", type=PATH, default="results/bench", show_default=True, help="Folder of fit.json and fit.md.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Alternating rounds of each timing.")
@click.option("--threads", type=int, default=2, show_default=True)
def fit_command(out: Path, rounds: int, threads: int) -> int:
    """Fits of coefficients: against bare passes, autograd and the authors' way."""
    from emkit.bench import fit

    return fit.main(out, rounds, threads)


@bench.command("merge")
@click.option(
    "--parameters", type=float, default=336e6, show_default=True, help="About how many, in the shapes of a Llama, bf16."
)
@click.option("--experts", type=int, default=3, show_default=True)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=["task_arithmetic", "ties", "dare_ties"],
    show_default=True,
    help="Once for each; also wudi (K = 5).",
)
@click.option("--mergekit", help="Path of mergekit-yaml (default: the one on the PATH, if there is one).")
@click.option("--no-mergekit", is_flag=True, help="Measure emkit alone.")
@click.option("--repeats", type=int, default=1, show_default=True, help="Runs of each program and method.")
@click.option("--iterations", type=int, default=100, show_default=True, help="WUDI's steps.")
@click.option("--work", type=PATH, default="build/bench", show_default=True, help="Where the checkpoints are made.")
@click.option("--keep", is_flag=True, help="Keep them for another run.")
@click.option("--out", type=PATH, help="Write NAME.json and NAME.md too, such as results/bench/merge-2-cores.")
def merge_command(parameters, experts, methods, mergekit, no_mergekit, repeats, iterations, work, keep, out) -> None:
    """Merges by emkit and by mergekit, on random checkpoints of a stated size."""
    import shutil
    import sys

    from emkit.bench import merge, report

    program = None if no_mergekit else merge.find_mergekit(mergekit)
    wanted = merge.Options(int(parameters), experts, methods, program, work, repeats, iterations)
    try:
        found = merge.bench(wanted, say=lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        if not keep:
            shutil.rmtree(wanted.folder, ignore_errors=True)
    text = merge.markdown(found)
    print(text)
    if out is not None:
        report.leave(out, found, text)
