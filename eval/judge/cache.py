"""Every request the judge got and every reply it gave, one JSON file each, named by the request's hash."""

import json
from pathlib import Path

from emkit.files import sha256_json, write_json
from emkit.locks import lock


class Cache:
    """Content-addressed store: ``<folder>/<first two hex digits>/<sha256>.json`` = ``{"request", "reply"}``.

    ``judge`` names who answered (upstream and, for rules, their version): another judge's replies are never reused.
    Files hold no key, and are written whole or not at all.
    """

    def __init__(self, folder: str | Path, judge: str):
        self.folder, self.judge = Path(folder), judge

    def key(self, request: dict) -> str:
        """Hex SHA-256 over the judge and the whole request body."""
        return sha256_json({"judge": self.judge, "request": request})

    def get(self, request: dict) -> dict | None:
        """The reply kept for ``request``, or None (also when the file is damaged: it is then made anew)."""
        try:
            record = json.loads(self._path(request).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record["reply"] if isinstance(record, dict) and record.get("request") == request else None

    def put(self, request: dict, reply: dict) -> dict:
        """Keep ``reply`` for ``request``, and return it; or the reply that another process kept meanwhile.

        A service may answer the same request in two ways: who asks must get the one that a replay will give.
        """
        with lock(self.folder / "lock"):
            kept = self.get(request)
            if kept is None:
                write_json(self._path(request), {"judge": self.judge, "request": request, "reply": reply})
            return reply if kept is None else kept

    def _path(self, request: dict) -> Path:
        key = self.key(request)
        return self.folder / key[:2] / f"{key}.json"
