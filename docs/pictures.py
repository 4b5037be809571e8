"""Makes the README's picture anew: the top of the demo's page, photographed by Chromium. Run `make demo` before.

python docs/pictures.py [runs/demo/report.html]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PICTURE = Path(__file__).with_name("demo.png")


def main(page: Path) -> None:
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed; install Chromium")
    if not page.is_file():
        sys.exit(f"there is no page {page}; run `make demo` first, or give another page's path")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-sync",
                "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
                f"--user-data-dir={profile}", "--window-size=1180,2020", f"--screenshot={PICTURE}",
                page.resolve().as_uri(),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
    print(PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/report.html"))
