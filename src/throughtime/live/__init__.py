"""LIVE: pages that move: a server for this machine's own browser, the view over runs as they train, the lab."""
