"""Unicode spellings: "é" is one character or two (macOS file names), and means the same in ids and texts."""

import unicodedata


def nfc(text: str) -> str:
    """The composed form, by which ids and texts are compared. Not NFKC, to which 10² is 102."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def spellings(text: str) -> frozenset[str]:
    """The text as it is and in both canonical forms, to look up what was stored in whichever came."""
    return frozenset({text} if text.isascii() else {text, nfc(text), unicodedata.normalize("NFD", text)})
