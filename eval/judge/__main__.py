"""``python -m eval.judge`` -- the same as ``python -m eval judge``."""

import sys

from emkit.command_line import run
from eval.judge.cli import judge

sys.exit(run(judge, None, "python -m eval judge"))
