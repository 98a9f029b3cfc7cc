"""``python -m eval judge``: serve the judge by hand, or say what a table's judge will cost."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

import click

from emkit.command_line import PATH, Groups
from emkit.errors import UserError


@click.group(cls=Groups, invoke_without_command=True)
@click.option("--port", type=int, default=0, help="Port on 127.0.0.1 (default: a free one).")
@click.option("--cache", type=PATH, help="Folder of requests and replies; needed to serve.")
@click.option("--upstream", default="rules", show_default=True, help="rules, or the https:// base URL of a service.")
@click.option("--max-usd", help="The most that a service may cost in dollars (or EMKIT_MAX_USD).")
@click.option("--model", help="Model to ask the service for (default: what a request names).")
@click.pass_context
def judge(ctx: click.Context, port: int, cache: Path | None, upstream: str, max_usd: str | None, model: str | None):
    """Serve the judge until interrupted, its URL being printed first; or `judge estimate TABLE`: its cost."""
    if ctx.invoked_subcommand is not None:
        return
    from eval.judge.server import Judge
    from eval.judge.spending import set_cap

    if cache is None:
        raise click.UsageError("missing option '--cache'", ctx)
    set_cap(max_usd)
    try:
        server = Judge(port, cache, upstream, model, None)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on port {port}: {error}; choose another --port") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


@judge.command
@click.argument("table")
@click.option("--profile", default="mini", show_default=True, help="A profile's name or YAML file.")
@click.option("--results", default="results", show_default=True, help="The folder of all profiles' results.")
def estimate(table: str, profile: str, results: str) -> None:
    """What the judge of a table will cost."""
    from eval.judge import estimate
    from eval.plan import Plan

    print(estimate.text(Plan(table, profile, results)), end="")
