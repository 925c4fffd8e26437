"""Texts as questions and passages are compared: words, and what counts as the same text.

Needs regex (``foldtune-server``).
"""

import re
from collections.abc import Collection

import regex

from foldtune.spellings import nfc

# Scripts without spaces between words (Thai, Lao, Myanmar, Khmer, kana, Han) are split into characters: else a sentence
# would be one word. Combining marks, such as the vowel signs of Hindi, belong to the letter before them.
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = regex.compile(rf"[{_SPACELESS}]\p{{M}}*|[[\w\p{{M}}]--[{_SPACELESS}]]+", regex.V1)
# Equivalent on ASCII, in less than half the time.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
# A sign on its own is a word (&&, !!, ??), and some make another word of one: C++, C#, 10².
_WORD_OR_SIGN = regex.compile(
    rf"(?<!\S)[^\s\w\p{{M}}\p{{N}}]+(?!\S)|[{_SPACELESS}]\p{{M}}*|[[\w\p{{M}}\p{{N}}\p{{S}}#&%*@]--[{_SPACELESS}]]+",
    regex.V1,
)
# The end of a sentence: not "!" alone, which may be a factorial, nor stops on their own, as in "cd ..". Matched from
# the right, so in linear time.
_STOPS = ".\uff0e\u3002…"
_QUESTION_MARK = rf"[\p{{Sentence_Terminal}}--[!\uff01{_STOPS}]]"
_SENTENCE_END = regex.compile(
    rf"(?r)(?:(?<=[^\s{_STOPS}])[{_STOPS}]+)?(?:\s*{_QUESTION_MARK}[!\uff01\s{_QUESTION_MARK}]*)?$", regex.V1
)
_STRAIGHT_QUOTES = str.maketrans("\u2018\u2019\u02bc\u201c\u201d", "'''\"\"")


def passage_text(title: str, text: str) -> str:
    """The text of a document that is embedded: in training, evaluation and serving alike."""
    return f"{title}\n{text}" if title else text


def words(text: str) -> list[str]:
    """The words of ``text`` after NFC and case folding; signs, punctuation and white space are separators."""
    if text.isascii():
        return _ASCII_WORD.findall(text.casefold())
    matches: list[str] = _WORD.findall(_fold(text))
    return matches


def words_and_signs(text: str) -> list[str]:
    """Like ``words``; signs count, since they may be all in which two questions differ."""
    matches: list[str] = _WORD_OR_SIGN.findall(_fold(text))
    return matches


def jaccard(left: Collection[str], right: Collection[str]) -> float:
    """The Jaccard similarity of two texts' words: those in common over those in both; 0 for two without words."""
    one, other = set(left), set(right)
    return len(one & other) / max(1, len(one | other))


def normalize_passage(text: str) -> str:
    """Equal for passages that differ only in case, white space or canonical form. Punctuation counts: it may be all in
    which two pieces of code differ.
    """
    return " ".join(_fold(text).split())


def normalize_question(text: str) -> str:
    """Equal for questions that differ only in case, white space, canonical form, curly quotes, or the question mark or
    full stop at their end. Any other sign may be the point of the question.
    """
    folded = normalize_passage(text).translate(_STRAIGHT_QUOTES)
    return _SENTENCE_END.sub("", folded, count=1).lstrip("¿¡ ") or folded


def _fold(text: str) -> str:
    # Case folding may decompose again.
    return nfc(nfc(text).casefold())
