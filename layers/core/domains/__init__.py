"""The domains of this deployment. A new one is a package beside ``finance`` and one entry in ``DOMAINS``."""

from typing import Final

from control_plane.model.contract import PLATFORM_PAYLOADS, EventTypes
from control_plane.model.domain import Domain
from domains import finance

DOMAINS: Final[tuple[Domain, ...]] = (finance.DOMAIN,)

EVENT_TYPES: Final = EventTypes([*PLATFORM_PAYLOADS, *(payload for domain in DOMAINS for payload in domain.payloads)])
"""Every event type that this deployment knows."""
