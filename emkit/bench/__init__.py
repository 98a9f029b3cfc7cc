"""``emkit bench …``: what emkit promises of speed and memory, measured, with the machine that it was measured on."""

from __future__ import annotations


def add_parsers(commands) -> None:
    """Add ``bench`` and its actions to the command line."""
    from pathlib import Path

    bench = commands.add_parser("bench", help="measure speed and memory; results lie under results/bench")
    actions = bench.add_subparsers(required=True, metavar="ACTION")
    fit = actions.add_parser("fit", help="fits of coefficients: against bare passes, autograd and the authors' way")
    fit.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of fit.json and fit.md")
    fit.add_argument("--rounds", type=int, default=5, help="alternating rounds of each timing")
    fit.add_argument("--threads", type=int, default=2)
    fit.set_defaults(call=_fit)


def _fit(options) -> int:
    from emkit.bench import fit

    return fit.main(options.out, options.rounds, options.threads)
