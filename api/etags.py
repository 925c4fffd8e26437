"""Entity tags: what a caller has, against what there is."""

ANY = "*"


def is_named(etag: str, header: str) -> bool:
    """Whether a header (``If-Match``, ``If-None-Match``) names the tag."""
    names = {name.strip().removeprefix("W/") for name in header.split(",")}
    return etag in names or ANY in names
