"""`python -m eval.items TABLE PROFILE`: draw the items of a table's columns and rewrite their committed hashes."""

from __future__ import annotations

import sys
import tempfile

from emkit.errors import UserError
from emkit.files import atomic_write
from eval.items.writer import SPLITS, hash_file, write
from eval.plan import Plan


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m eval.items TABLE PROFILE", file=sys.stderr)
        return 2
    try:
        protocol = Plan(*arguments).protocol
        lines = []
        for split in SPLITS:
            with tempfile.TemporaryDirectory() as folder:
                entries = write(protocol, split, folder)["benchmarks"]
            lines += [f"{entry['sha256']}  {split}/{name}\n" for name, entry in entries.items()]
        with atomic_write(hash_file(protocol.name)) as part:
            part.write_text("".join(lines), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
