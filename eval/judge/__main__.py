"""``python -m eval.judge`` -- the same as ``python -m eval judge``."""

import sys

from eval.judge.cli import cli

sys.exit(cli(sys.argv[1:]))
