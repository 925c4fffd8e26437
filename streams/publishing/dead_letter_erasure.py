"""Deletes dead letters that name an erased subject.

Kafka deletes the beginning of a partition only: dead letters before the last of these are published again.
"""

import json
from collections.abc import Collection, Iterator

from foldtune.events import ErasureRequested
from foldtune.kafka import Publisher
from foldtune.settings import KafkaSettings
from foldtune.topic_admin import delete_records
from foldtune.topics import Topic
from streams.publishing.dead_letter_replay import COPY_HEADER, DeadLetter, read_dead_letters, read_records


def letters_that_name(erasure: ErasureRequested, settings: KafkaSettings) -> list[DeadLetter]:
    """The dead letters that name the subject, and the folder if the erasure is of one; raises like ``read``.

    Whenever they occurred, and in whatever field: what was rejected need not be readable.
    """
    names = [erasure.subject_id, *([] if erasure.folder_id is None else [erasure.folder_id])]
    return read_dead_letters(settings, lambda letter, value: all(_is_named(name, letter, value) for name in names))


def delete_letters(letters: Collection[DeadLetter], settings: KafkaSettings) -> int:
    """Delete dead letters, and publish those again that lie before them and were not replayed; returns how many.

    These get new ids, and count as rejected now and for the first time. Cut short, it can be repeated: a copy names its
    letter, which gets no second one.

    Raises:
        PublishError: one was not acknowledged; nothing is deleted.
    """
    last: dict[int, int] = {}
    for letter in letters:
        last[letter.partition] = max(letter.offset, last.get(letter.partition, letter.offset))
    present = read_dead_letters(settings)
    done = {letter.id for letter in letters} | {letter.copy_of for letter in present}
    kept = {
        letter.id
        for letter in present
        if letter.offset < last.get(letter.partition, 0) and letter.id not in done and not letter.replayed
    }
    with Publisher(settings) as publisher:
        for record in read_records(settings, kept):
            headers = [header for header in record.headers if header[0] != COPY_HEADER]
            headers.append((COPY_HEADER, f"{record.partition}:{record.offset}".encode()))
            publisher.send_raw(
                Topic.DEAD_LETTERS, record.value, key=record.key, partition=record.partition, headers=headers
            )
        publisher.flush()
    delete_records(settings, Topic.DEAD_LETTERS, {partition: offset + 1 for partition, offset in last.items()})
    return len(kept)


def _is_named(name: str, letter: DeadLetter, value: bytes) -> bool:
    quoted = {json.dumps(name), json.dumps(name, ensure_ascii=False)}
    return (
        letter.key == name.encode()
        or any(text in letter.error for text in (*quoted, repr(name)))
        or any(text.encode("utf-8", "surrogatepass") in value for text in quoted)
        or name in _scalars(value)
        # Of another format, perhaps: never valid, so nothing is lost with it.
        or (name.encode() in value and not _is_text(value))
    )


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def _scalars(value: bytes | str) -> Iterator[str]:
    """The strings of JSON, however they are written, and the numbers that stand for ids; also of JSON in a string.

    None if it is not JSON.
    """
    try:
        content = json.loads(value, parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError):
        return
    # With whether it is an id: one may have come as a number, and be refused for that.
    left = [(content, False)]
    while left:
        match left.pop():
            case (dict() as fields, _):
                left += [(name, False) for name in fields]
                left += [(field, name.endswith(("_id", "_ids"))) for name, field in fields.items()]
            case (list() as items, is_id):
                left += [(item, is_id) for item in items]
            case (str() as text, is_id):
                if is_id or not isinstance(text, _Number):
                    yield text
                if text.startswith(("{", "[", '"')):
                    yield from _scalars(text)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
