"""Text that is safe to put in a page: hostile or invisible characters are shown, never obeyed."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Callable

# Characters of the format category that people read: Arabic, Syriac and Kaithi number and sign marks.
_PRINTED_FORMAT = frozenset([*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD])
# Zero-width joiner and non-joiner: they hide nothing, and without them Persian and many emoji are misspelt.
_JOINERS = frozenset([0x200C, 0x200D])
_INVISIBLE = frozenset(["Cc", "Cf", "Cs", "Co", "Zl", "Zp"])

_CONTROLS = {
    **dict(
        enumerate(
            (
                "NUL",
                "SOH",
                "STX",
                "ETX",
                "EOT",
                "ENQ",
                "ACK",
                "BEL",
                "BS",
                "TAB",
                "LF",
                "VT",
                "FF",
                "CR",
                "SO",
                "SI",
                "DLE",
                "DC1",
                "DC2",
                "DC3",
                "DC4",
                "NAK",
                "SYN",
                "ETB",
                "CAN",
                "EM",
                "SUB",
                "ESC",
                "FS",
                "GS",
                "RS",
                "US",
            )
        )
    ),
    0x7F: "DEL",
}


def _sign(char: str) -> str | None:
    """The visible sign for a character that would not show, or None for one that shows itself."""
    code = ord(char)
    if char == "\n" or code in _JOINERS or code in _PRINTED_FORMAT:
        return None
    if code in _CONTROLS:
        return f"\u2039{_CONTROLS[code]}\u203a"
    if unicodedata.category(char) in _INVISIBLE or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        return f"\u2039U+{code:04X}\u203a"
    return None


def _convert(text: str, plain: Callable[[str], str], sign: Callable[[str, str], str]) -> str:
    out: list[str] = []
    run: list[str] = []
    for char in text.replace("\r\n", "\n"):
        mark = _sign(char)
        if mark is None:
            run.append(char)
            continue
        out.append(plain("".join(run)))
        out.append(sign(mark, char))
        run.clear()
    out.append(plain("".join(run)))
    return "".join(out)


def visible(text: str) -> str:
    """`text` with each control, bidirectional or unpaired character replaced by a sign; the newline stays.

    The sign is the character's name or number between single angle quotes: NUL, ESC, U+202E. A carriage
    return before a newline goes with it. The result can be encoded as UTF-8 whatever came in.
    """
    return _convert(str(text), lambda run: run, lambda mark, char: mark)


def visible_html(text: str) -> str:
    """As `visible`, escaped for HTML, each sign in its own `<span class="sign">`; a tab keeps its width."""

    def sign(mark: str, char: str) -> str:
        return f'<span class="sign" title="U+{ord(char):04X}">{mark}</span>' + ("\t" if char == "\t" else "")

    return _convert(str(text), html.escape, sign)


def escape(text: object) -> str:
    """`text` made visible and escaped for an HTML text node or a quoted attribute."""
    return html.escape(visible(str(text)), quote=True)


def script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in: pure ASCII, and no `<`, `>` or `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
