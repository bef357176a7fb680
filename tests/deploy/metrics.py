"""The metrics that there are, as the tables of docs/operate.md list them, and the expressions that use them."""

import re
from dataclasses import dataclass

from tools import ROOT

ROW = re.compile(
    r"^\| `(?P<name>[a-z_]+)` \| (?P<kind>counter|gauge|histogram) \| (?P<labels>[^|]*) \| (?P<what>[^|]+) \|$"
)
# What Prometheus and whoever scrapes add.
TARGET_LABELS = {"namespace", "kvasir_cluster", "job", "instance", "pod"}
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}


@dataclass
class Metric:
    name: str
    kind: str
    labels: set

    def series(self):
        """Names that Prometheus has, with their labels."""
        if self.kind != "histogram":
            return {self.name: self.labels}
        return {
            f"{self.name}_bucket": self.labels | {"le"},
            f"{self.name}_sum": self.labels,
            f"{self.name}_count": self.labels,
        }


def listed():
    rows = map(ROW.match, (ROOT / "docs" / "operate.md").read_text().splitlines())
    return [Metric(row["name"], row["kind"], set(re.findall(r"`([a-z_]+)`", row["labels"]))) for row in rows if row]


def known_series():
    found = dict(OF_PROMETHEUS)
    for metric in listed():
        found |= metric.series()
    return found


SELECTOR = re.compile(r"(?<![\w\"$])(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)\s*(?P<matchers>\{[^}]*\})")
BARE = re.compile(r"(?<![\w\"$])(?P<name>(?:kvasir|gen_ai)_[a-z0-9_]+|up|ALERTS)(?![\w\"(=!~])")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def uses(expression):
    """`(series, labels of its matchers)` of each selector, and all labels that results are grouped by."""
    groupings = GROUPING.findall(expression)
    grouped = {label.strip() for labels in groupings for label in labels.split(",")}
    rest = GROUPING.sub(" ", expression)
    selectors = [
        (found["name"], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", found["matchers"])))
        for found in SELECTOR.finditer(rest)
    ]
    selectors += [(found["name"], set()) for found in BARE.finditer(SELECTOR.sub(" ", rest))]
    return selectors, grouped - {""}


def unknown(expression):
    """What the expression uses and nobody has, as sentences."""
    known = known_series()
    selectors, grouped = uses(expression)
    complaints = [f"{name} is no metric" for name, _ in selectors if name not in known]
    labels = set(TARGET_LABELS)
    for name, matched in selectors:
        labels |= known.get(name, set())
        for label in matched - known.get(name, set()) - TARGET_LABELS:
            complaints.append(f"{name} has no label {label}")
    complaints += [f"nothing here has the label {label}" for label in grouped - labels]
    if not selectors:
        complaints.append("no metric is used")
    return complaints
