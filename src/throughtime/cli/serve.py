"""`throughtime serve` and `throughtime lab`: the moving pages, until Ctrl-C."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence

from throughtime.cli.options import Lab, Serve
from throughtime.live.app import serve


def main(options: Serve | Lab, words: Sequence[str] = ()) -> int:
    """Serves until it is stopped; prints where."""
    runs = options.runs if isinstance(options, Serve) else None
    with serve(options.port, runs) as server:
        address = server.address if runs else f"{server.address}lab"
        print(f"{address}   (this machine only; Ctrl-C stops it)", flush=True)
        if options.browser:
            webbrowser.open(address)
        try:
            server.wait()
        except KeyboardInterrupt:
            print()
    return 0
