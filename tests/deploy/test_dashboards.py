"""The dashboards: every expression parses, and uses metrics and labels that there are."""

import json
import re

import pytest
import yaml

import metrics
from tools import CHART, Failed, promtool

FILES = sorted((CHART / "dashboards").glob("*.json"))
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What Grafana puts in.
VARIABLES = {"$cluster": ".*", "$group": ".*", "$__rate_interval": "5m", "$__range": "1h"}


def dashboards():
    return [(path.name, json.loads(path.read_text())) for path in FILES]


def panels():
    """With a query, as `(name, panel)`."""
    return [
        (f"{file}: {panel['title']}", panel)
        for file, dashboard in dashboards()
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    ]


def expressions():
    found = [(name, target["expr"]) for name, panel in panels() for target in panel["targets"]]
    for file, dashboard in dashboards():
        found += [(file, annotation["expr"]) for annotation in dashboard["annotations"]["list"]]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found.append((file, variable["definition"].removeprefix("label_values(").rpartition(",")[0]))
    return found


def filled(expression):
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def check(found, folder):
    """By promtool, as rules."""
    rules = [{"record": f"x:{index}".replace(":", "_"), "expr": filled(expr)} for index, (_, expr) in enumerate(found)]
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", path)


def test_every_expression_parses(tmp_path):
    assert len(expressions()) > 100
    check(expressions(), tmp_path)


def test_an_expression_that_does_not_parse_is_noticed(tmp_path):
    with pytest.raises(Failed):
        check([*expressions(), ("x", "sum by (group (kvasir_blocks)")], tmp_path)


def test_every_variable_is_known():
    for name, expression in expressions():
        assert "$" not in filled(expression), name


def test_expressions_use_metrics_and_labels_that_there_are():
    wrong = {name: complaints for name, expr in expressions() if (complaints := metrics.unknown(filled(expr)))}
    assert not wrong


def test_every_metric_is_on_a_dashboard():
    """Whatever is worth counting is worth seeing."""
    shown = {name for _, expr in expressions() for name, _ in metrics.uses(filled(expr))[0]}
    hidden = [metric.name for metric in metrics.listed() if not shown & metric.series().keys()]
    # What the coordinator says of the same.
    assert set(hidden) <= {"kvasir_worker_epoch", "kvasir_worker_term", "kvasir_worker_rank"}


@pytest.mark.parametrize(("file", "dashboard"), dashboards(), ids=[path.name for path in FILES])
def test_a_dashboard_is_one_that_grafana_takes(file, dashboard):
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["uid"] == f"kvasir-{file.removesuffix('.json')}"
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables.keys() == {"datasource", "cluster", "group"}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == SOURCE, panel["title"]
            assert all(target["datasource"] == SOURCE for target in panel["targets"]), panel["title"]


def test_dashboards_lead_to_each_other_and_have_titles_of_their_own():
    found = [dashboard for _, dashboard in dashboards()]
    assert {dashboard["title"] for dashboard in found} == {
        "Kvasir: Healthy?",
        "Kvasir: Fast?",
        "Kvasir: Where is the KV?",
        "Kvasir: What is moving?",
    }
    for dashboard in found:
        (link,) = dashboard["links"]
        assert set(link["tags"]) <= set(dashboard["tags"])


def test_legends_name_labels_that_results_have():
    for name, panel in panels():
        for target in panel["targets"]:
            selectors, grouped = metrics.uses(target["expr"])
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            whole = not grouped and "sum" not in target["expr"]
            assert whole or legend <= grouped, f"{name}: {target['legendFormat']}"
