"""What the API knows of the system, read from topics and kept in memory: ``system.py`` is the way in.

``follower.py`` reads the topics; each other module keeps what one of them says.
"""

from datetime import datetime
from typing import Annotated

import msgspec

# Compared with others: one without a time zone is no time of an event.
Time = Annotated[datetime, msgspec.Meta(tz=True)]
