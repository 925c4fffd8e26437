"""Bounds what is quoted: reasons and names come from events, which may be as large as a record."""

from collections.abc import Collection, Iterator, Sequence

MAX_NAMES = 10
# Reasons: two lists of names with the number of the others, and a few more.
_MAX_NAME, _MAX_REASON, _MAX_REASONS = 100, 500, 2 * (MAX_NAMES + 1) + 3
# JSON takes six bytes for most of these.
_CONTROL = dict.fromkeys((*range(9), *range(11, 13), *range(14, 32)), "\N{REPLACEMENT CHARACTER}")


def excerpt(text: str, size: int = _MAX_REASON) -> str:
    """The first ``size`` bytes of a text in UTF-8, without control characters that JSON escapes at length."""
    encoded = text[:size].translate(_CONTROL).encode(errors="replace")
    if len(text) <= size and len(encoded) <= size:
        return encoded.decode()
    return f"{encoded[:size].decode(errors='ignore')}…"


def name(text: str) -> str:
    """A name from an event, quoted and cut."""
    return repr(excerpt(text, _MAX_NAME))


def first_names(names: Collection[str], *, before: str, more: str) -> Iterator[str]:
    """One reason for each of the first names, and one with the number of the others.

    For example ``data.folders: unknown folder 'x'`` and ``data.folders: 12 more unknown folders``.
    """
    for number, text in enumerate(names):
        if number == MAX_NAMES:
            yield more.format(len(names) - MAX_NAMES)
            return
        yield f"{before} {name(text)}"


def bounded(reasons: Sequence[str]) -> tuple[str, ...]:
    """The first reasons, each cut, and the number of the others; applied again, it changes nothing."""
    if len(reasons) <= _MAX_REASONS + 1:
        return tuple(map(excerpt, reasons))
    return (*map(excerpt, reasons[:_MAX_REASONS]), f"and {len(reasons) - _MAX_REASONS} more")
