"""A local server that speaks Yahoo's chart API and replays real daily prices as one-minute bars on today's clock."""

from market_replay.faults import Correction, Fault, Faults
from market_replay.prices import Replay
from market_replay.server import MarketReplay, serve

__all__ = ["Correction", "Fault", "Faults", "MarketReplay", "Replay", "serve"]
