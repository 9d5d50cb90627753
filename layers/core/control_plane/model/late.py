"""Types that are read from JSON, and whose validators are built on their first use."""

from threading import RLock
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

_BUILDING = RLock()


class LateModel(BaseModel):
    """The base of what events, answers and records hold. A cold start needs few of these types, and imports all.

    pydantic builds a deferred type without a lock, and two threads that use one first at the same time fail: here each
    waits for the other.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @classmethod
    def model_rebuild(cls, **given: Any) -> bool | None:
        """Builds the type's validators, where that is not done yet."""
        with _BUILDING:
            return super().model_rebuild(**given)
