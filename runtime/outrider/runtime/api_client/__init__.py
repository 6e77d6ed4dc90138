"""The fleet's HTTP API for Python, on the standard library and msgspec alone.

```python
client = FleetClient("http://127.0.0.1:8080", key)
client.create_rollout(RolloutRequest(name="fraud", version="1", group="default", canary=1))
```
"""

from outrider.runtime.api_client.client import FleetClient
from outrider.runtime.api_client.types import (
    AuditEntry,
    AuditReport,
    BundleInfo,
    BundleProfileInfo,
    DeploymentInfo,
    DeviceInfo,
    DriftEventInfo,
    DriftInfo,
    Enrolment,
    EnrolRequest,
    EventInfo,
    HealthInfo,
    JobInfo,
    LabelItem,
    LabelsInfo,
    Lineage,
    LineageBundle,
    LineageRollout,
    PerformanceInfo,
    ReleaseInfo,
    RolloutInfo,
    RolloutRequest,
    RolloutSettings,
    TokenInfo,
    TriggerInfo,
    TriggerSpec,
)

__all__ = [
    "AuditEntry",
    "AuditReport",
    "BundleInfo",
    "BundleProfileInfo",
    "DeploymentInfo",
    "DeviceInfo",
    "DriftEventInfo",
    "DriftInfo",
    "EnrolRequest",
    "Enrolment",
    "EventInfo",
    "FleetClient",
    "HealthInfo",
    "JobInfo",
    "LabelItem",
    "LabelsInfo",
    "Lineage",
    "LineageBundle",
    "LineageRollout",
    "PerformanceInfo",
    "ReleaseInfo",
    "RolloutInfo",
    "RolloutRequest",
    "RolloutSettings",
    "TokenInfo",
    "TriggerInfo",
    "TriggerSpec",
]
