"""``python -m eval judge``: serve the judge by hand, or say what a table's judge will cost."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

from emkit.errors import UserError


def cli(argv: list[str]) -> int:
    """``judge estimate TABLE``, or ``judge --cache FOLDER …``; exit status 0, or 2 on bad input."""
    try:
        if argv[:1] == ["estimate"]:
            return _estimate(argv[1:])
        return _serve(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _estimate(argv: list[str]) -> int:
    from eval.judge import estimate
    from eval.plan import Plan

    parser = argparse.ArgumentParser(prog="python -m eval judge estimate", description=estimate.__doc__)
    parser.add_argument("table", help="a table's name, such as table1, or its YAML file")
    parser.add_argument("--profile", default="mini", help="a profile's name or YAML file")
    parser.add_argument("--results", default="results", help="the folder of all profiles' results")
    options = parser.parse_args(argv)
    print(estimate.text(Plan(options.table, options.profile, options.results)), end="")
    return 0


def _serve(argv: list[str]) -> int:
    """Print the judge's URL and serve until interrupted."""
    from eval.judge.server import Judge
    from eval.judge.spending import set_cap

    parser = argparse.ArgumentParser(prog="python -m eval judge", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--cache", type=Path, required=True, help="folder of requests and replies")
    parser.add_argument("--upstream", default="rules", help="rules, or the https:// base URL of a service")
    parser.add_argument("--max-usd", help="the most that a service may cost in dollars (or EMKIT_MAX_USD)")
    parser.add_argument("--model", help="model to ask the service for (default: what a request names)")
    options = parser.parse_args(argv)
    set_cap(options.max_usd)
    try:
        judge = Judge(options.port, options.cache, options.upstream, options.model, None)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on port {options.port}: {error}; choose another --port") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(judge.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        judge.serve_forever()
    return 0
