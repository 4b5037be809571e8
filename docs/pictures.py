"""Makes the README's pictures anew, photographed by Chromium: the demo's page, the lab. Run `make demo` before.

.venv/bin/python docs/pictures.py [runs/demo/report.html]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from throughtime.live.app import serve

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HERE = Path(__file__).parent


def photograph(address: str, picture: Path, size: str) -> None:
    """Writes what the browser shows at `address`, after its scripts have had five seconds of their own time."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed; install Chromium")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-sync",
                "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
                "--virtual-time-budget=5000", f"--user-data-dir={profile}", f"--window-size={size}",
                f"--screenshot={picture}", address,
            ],
            check=True, capture_output=True,
        )  # fmt: skip
    print(picture)


def main(page: Path) -> None:
    if not page.is_file():
        sys.exit(f"there is no page {page}; run `make demo` first, or give another page's path")
    photograph(page.resolve().as_uri(), HERE / "demo.png", "1180,2020")
    with serve() as server:
        photograph(f"{server.address}lab", HERE / "lab.png", "1180,1640")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/report.html"))
