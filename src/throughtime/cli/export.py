"""`throughtime export`: a trained run as an ONNX file or a torch.export program."""

from __future__ import annotations

from collections.abc import Sequence

from throughtime.cli.options import Export
from throughtime.train import export


def main(options: Export, words: Sequence[str] = ()) -> int:
    """Write the file, and print what goes in and what comes out."""
    print(export(options.run, options.file, checkpoint=options.checkpoint))
    return 0
