"""Events as an agent writes them."""

import pytest
from pydantic import ValidationError

from foldtune import Rating, Verdict


def test_a_rating_is_written_in_python_as_in_an_event() -> None:
    written = Verdict(rating="like")  # type: ignore[arg-type]
    assert written == Verdict(rating=Rating.LIKE) == Verdict.model_validate_json('{"rating": "like"}')
    with pytest.raises(ValidationError, match="'like' or 'dislike'"):
        Verdict(rating="loved")  # type: ignore[arg-type]
