"""How a home is: one report, from facts the other rooms have, for people and for programs.

*Available*: every read works. *Healthy*: every copy that was asked for is there. The report's first line is
`HEALTH_OK`, `HEALTH_WARN` or `HEALTH_ERR`; each finding names what mends it.
"""

from collective.health.finding import Finding, verdict
from collective.health.report import StatusDesk, status_rows

__all__ = ["Finding", "StatusDesk", "status_rows", "verdict"]
