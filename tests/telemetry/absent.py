"""Metrics that pages, dashboards and alerts name and no process shows yet, and why not. A test checks that it is so."""

ABSENT = {}
