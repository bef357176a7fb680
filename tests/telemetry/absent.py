"""Metrics that pages, dashboards and alerts name and no process shows yet, and why not. A test checks that it is so."""

ABSENT = {
    "kvasir_leader": "no election: coordinators do not share a registry yet",
    "kvasir_registry_connected": "no registry yet",
}
