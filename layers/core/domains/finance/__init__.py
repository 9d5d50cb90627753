"""Finance: market prices in, the latest price and its risk out; anomalies, and what is done about them."""

from typing import Final

from control_plane.model.decision_events import CLIENT_ACTIONS
from control_plane.model.domain import Consumer, Domain, OnReplay
from domains.finance import detector, paper_account, signal_lab
from domains.finance.events import MARKET_TICKS, CorporateDividend, CorporateSplit, MarketTick
from domains.finance.price_file import BARS
from domains.finance.yahoo_reach import YAHOO

DOMAIN: Final = Domain(
    name="finance",
    payloads=(MarketTick, CorporateSplit, CorporateDividend),
    consumers=(
        Consumer(
            signal_lab.CONSUMER,
            MARKET_TICKS,
            signal_lab.consume,
            on_replay=OnReplay.SAFE,
            rebuild=signal_lab.REBUILD,
        ),
        # What the detector folds again can tell nothing new of the same bars; what it has never seen, it must fold. An
        # anomaly opens a decision, so a changed detector is rebuilt, which emits nothing.
        Consumer(
            detector.CONSUMER,
            MARKET_TICKS,
            detector.consume,
            on_replay=OnReplay.SKIP,
            rebuild=detector.REBUILD,
        ),
        Consumer(paper_account.CONSUMER, CLIENT_ACTIONS, paper_account.consume),
    ),
    histories=(YAHOO,),
    files=(BARS,),
    deciding="domains.finance.deciding.plug_ins",
    reconciling="domains.finance.paper_account.reconcile",
    forgetting="domains.finance.forgetting",
)
