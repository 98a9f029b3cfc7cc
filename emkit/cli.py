"""``emkit …``: merges of one's own models, what the methods are, and the miniature models."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import click

    from emkit import __version__, bench
    from emkit.command_line import PATH, Groups, run
    from emkit.errors import UserError
    from emkit.own import cli as own
except ModuleNotFoundError as missing:
    from emkit.errors import not_installed

    sys.exit(not_installed(missing))


@click.group(cls=Groups)
@click.version_option(__version__, message="emkit %(version)s")
def app() -> None:
    """Merge expert models into one: by learned coefficients (Expert Merging, arXiv 2509.25712) or by simpler methods.

    A first merge, in three lines:

    \b
      emkit init merge.yaml --base models/base --expert math=models/math --expert code=models/code
      emkit merge merge.yaml
      emkit coefficients show merged

    The first writes a recipe that explains itself. A method that needs no prompts takes one line:

    \b
      emkit merge --base models/base --expert models/math --expert models/code --method ties --out merged

    `emkit COMMAND --help` says more of one.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one ``emkit`` command; returns its exit status."""
    return run(app, arguments, "emkit")


@click.command
@click.argument("method", required=False)
def explain(method: str | None) -> None:
    """What a method does: formula, options, where defaults are from.

    Without METHOD, a list of them.
    """
    from emkit import explain

    print(explain.methods() if method is None else explain.method(method))


@click.group(cls=Groups)
def zoo() -> None:
    """Train the miniature models, or compare two zoos."""


@zoo.command("build")
@click.argument("name")
@click.option("--out", type=PATH, required=True, help="Folder of the finished models.")
@click.option("--against", type=PATH, help="Committed models whose skills to compare with.")
@click.option("--jobs", type=int, default=2, show_default=True, help="Models trained at once.")
def zoo_build(name: str, out: Path, against: Path | None, jobs: int) -> int:
    """Train a zoo from nothing; goes on where it was interrupted.

    NAME is a recipe of emkit/recipes/zoo, such as internvl-mini.
    """
    from emkit.zoo import build
    from emkit.zoo.compare import compare

    recipe = build.load_recipe(name)
    build.build(recipe, out, out / ".work", jobs)
    if against is None:
        return 0
    there = [member for member in build.members(recipe) if (against / member / "card.json").is_file()]
    own = {member: build.own_subtasks(recipe, member) for member in there}
    table, agrees = compare(out, against, own)
    print(table)
    return 0 if agrees else 1


@zoo.command("check")
@click.argument("folder", type=PATH)
def zoo_check(folder: Path) -> None:
    """Check the models' hashes against their cards."""
    from emkit.zoo import card

    folders = sorted(path.parent for path in folder.glob("*/card.json") if card.is_finished(path.parent))
    if not folders:
        raise UserError(f"there is no zoo in {folder}")
    for found in folders:
        if card.weights_sha256(found) != card.read(found)["weights_sha256"]:
            raise UserError(f"{found}: the weights are not those of its card; `git checkout` them again")
        print(f"{found}: weights are those of its card")


for command in (own.init, own.merge, own.chat, own.export, own.coefficients, explain):
    app.under("Merge your own models", command)
app.under("The miniature models", zoo)
app.under("Speed and memory", bench.bench)

if __name__ == "__main__":
    sys.exit(main())
