"""What can go wrong in ``api``. The class docstring is the message; the arguments say what exactly."""

from foldtune.errors import FoldtuneError


class BodyError(FoldtuneError):
    """body:"""


class UnknownFieldsError(FoldtuneError):
    """No fields of a request:"""
