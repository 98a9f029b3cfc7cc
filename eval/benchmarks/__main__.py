"""`python -m eval.benchmarks PROTOCOL.yaml`: draw a protocol's items and rewrite their committed content hashes."""

from __future__ import annotations

import sys
import tempfile

from emkit.errors import UserError
from emkit.files import atomic_write
from eval.benchmarks.protocol import load
from eval.benchmarks.writer import hash_file, write


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m eval.benchmarks PROTOCOL.yaml", file=sys.stderr)
        return 2
    try:
        protocol = load(arguments[0])
        lines = []
        for split in ("evaluation", "validation"):
            with tempfile.TemporaryDirectory() as folder:
                entries = write(protocol, split, folder)["benchmarks"]
            lines += [f"{entry['sha256']}  {split}/{name}\n" for name, entry in entries.items()]
        with atomic_write(hash_file(protocol["name"])) as part:
            part.write_text("".join(lines), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
