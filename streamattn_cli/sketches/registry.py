"""Which history belongs to which parameters."""

from __future__ import annotations

from streamattn_cli.sketches.histories.balance import BalanceHistory, BalanceParams
from streamattn_cli.sketches.histories.evict import EvictHistory, EvictParams
from streamattn_cli.sketches.histories.nystrom import NystromHistory, NystromParams
from streamattn_cli.sketches.histories.poly import PolyHistory, PolyParams
from streamattn_cli.sketches.histories.sample import SampleHistory, SampleParams
from streamattn_cli.sketches.histories.wildcat import WildcatHistory, WildcatParams

HISTORIES = {
    BalanceParams: BalanceHistory,
    EvictParams: EvictHistory,
    NystromParams: NystromHistory,
    PolyParams: PolyHistory,
    SampleParams: SampleHistory,
    WildcatParams: WildcatHistory,
}
HistoryParams = BalanceParams | EvictParams | NystromParams | PolyParams | SampleParams | WildcatParams
