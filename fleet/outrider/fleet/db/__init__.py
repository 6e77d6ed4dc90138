"""The fleet's database: tables, transactions and migrations.

```python
database = Database("sqlite:///fleet.db")
database.migrate()
with database.session() as session:          # commits at the end, rolls back on an exception
    session.add(TriggerRow(...))
```
"""

from outrider.fleet.db.database import Database, migration_config
from outrider.fleet.db.models import (
    ApiKeyRow,
    AuditRow,
    Base,
    BundleRow,
    DeploymentRow,
    DesiredRow,
    DeviceBootRow,
    DeviceRow,
    DriftEventRow,
    DriftStateRow,
    EnrolmentTokenRow,
    EventRow,
    JobRow,
    PredictionRow,
    ReleaseRow,
    RolloutRow,
    TriggerRow,
    WaitingLabelRow,
    WindowRow,
)

__all__ = [
    "ApiKeyRow",
    "AuditRow",
    "Base",
    "BundleRow",
    "Database",
    "DeploymentRow",
    "DesiredRow",
    "DeviceBootRow",
    "DeviceRow",
    "DriftEventRow",
    "DriftStateRow",
    "EnrolmentTokenRow",
    "EventRow",
    "JobRow",
    "PredictionRow",
    "ReleaseRow",
    "RolloutRow",
    "TriggerRow",
    "WaitingLabelRow",
    "WindowRow",
    "migration_config",
]
