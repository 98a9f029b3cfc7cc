"""Files as git has them: what somebody saved in Jupyter without committing it is their own affair."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def text(path: Path) -> str:
    """What would be committed now: git's index; without a repository, or before it was added, the file itself."""
    name = path.relative_to(ROOT).as_posix()
    run = subprocess.run(["git", "show", f":{name}"], cwd=ROOT, capture_output=True, check=False)
    return (run.stdout if run.returncode == 0 else path.read_bytes()).decode("utf-8")
