"""Which history belongs to which parameters."""

from __future__ import annotations

from streamattn_cli.sketches.balance import BalanceHistory, BalanceParams
from streamattn_cli.sketches.evict import EvictHistory, EvictParams
from streamattn_cli.sketches.nystrom import NystromHistory, NystromParams
from streamattn_cli.sketches.poly import PolyHistory, PolyParams
from streamattn_cli.sketches.sample import SampleHistory, SampleParams
from streamattn_cli.sketches.wildcat import WildcatHistory, WildcatParams

HISTORIES = {
    BalanceParams: BalanceHistory,
    EvictParams: EvictHistory,
    NystromParams: NystromHistory,
    PolyParams: PolyHistory,
    SampleParams: SampleHistory,
    WildcatParams: WildcatHistory,
}
HistoryParams = BalanceParams | EvictParams | NystromParams | PolyParams | SampleParams | WildcatParams
