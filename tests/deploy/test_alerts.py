"""The alerts: they parse, use metrics that there are, lead to a paragraph of docs/operate.md, fire and end."""

import re

import pytest
import yaml

import metrics
from tools import CHART, HERE, ROOT, Failed, promtool

RULES = CHART / "alerts.yaml"
CASES = yaml.safe_load((HERE / "alert_cases.yaml").read_text())
SEVERITIES = {"critical", "warning", "info"}


def alerts():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_promtool_reads_them():
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", RULES)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_uses_metrics_and_labels_that_there_are(alert):
    assert not metrics.unknown(alert["expr"])


def test_a_metric_or_a_label_that_there_is_not_is_noticed():
    assert metrics.unknown("sum(kvasir_requests_wating)") == ["kvasir_requests_wating is no metric"]
    assert metrics.unknown('kvasir_blocks{stat="free"}') == ["kvasir_blocks has no label stat"]
    assert metrics.unknown("sum by (grp) (kvasir_blocks)") == ["nothing here has the label grp"]
    assert metrics.unknown("rate(kvasir_step_tokens[5m])") == ["kvasir_step_tokens is no metric"], (
        "a histogram's sum is"
    )
    assert not metrics.unknown('sum by (group, le) (rate(kvasir_step_tokens_bucket{group="0"}[5m])) > 3')


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_it_is_and_what_to_do(alert):
    assert alert["labels"]["severity"] in SEVERITIES
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook"}
    page, _, anchor = annotations["runbook"].partition("#")
    assert anchor in anchors((ROOT / page).read_text())


def anchors(markdown):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_has_a_case():
    assert {case["alert"] for case in CASES} == {alert["alert"] for alert in alerts()}


@pytest.fixture(scope="module")
def without_annotations(tmp_path_factory):
    """What they say in words is no part of whether they fire."""
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    path = tmp_path_factory.mktemp("rules") / "alerts.yaml"
    path.write_text(yaml.safe_dump(rules))
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["alert"])
def test_an_alert_fires_and_ends(case, without_annotations):
    unit_test(case, without_annotations)


def test_a_case_that_does_not_hold_is_noticed(without_annotations):
    with pytest.raises(Failed):
        unit_test(CASES[0] | {"quiet": CASES[0]["fires"]}, without_annotations)


def unit_test(case, rules):
    severity = {alert["alert"]: alert["labels"]["severity"] for alert in alerts()}[case["alert"]]
    firing = [{"exp_labels": case["labels"] | {"severity": severity}}]
    moments = [("quiet", []), ("fires", firing), ("over", [])]
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case["series"].items()],
        "alert_rule_test": [
            {"eval_time": case[moment], "alertname": case["alert"], "exp_alerts": expected}
            for moment, expected in moments
        ],
    }
    path = rules.parent / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", path)


def test_words_are_filled_in(tmp_path):
    """Of one alert, in full."""
    test = {
        "interval": "1m",
        "input_series": [
            {"series": 'kvasir_kv_cache_usage_ratio{namespace="llm",kvasir_cluster="a"}', "values": "0.97+0x30"}
        ],
        "alert_rule_test": [
            {
                "eval_time": "20m",
                "alertname": "KvasirCacheFull",
                "exp_alerts": [
                    {
                        "exp_labels": {"namespace": "llm", "kvasir_cluster": "a", "severity": "warning"},
                        "exp_annotations": {
                            "summary": "97% of the KV cache of llm/a is in use",
                            "description": "Requests wait for blocks, or running ones are preempted and computed again later.",
                            "runbook": "docs/operate.md#kv-cache-full",
                        },
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", path)
