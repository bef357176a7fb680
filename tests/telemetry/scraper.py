"""A real Prometheus with the deployed configuration, at a test's pace: intervals, `for:` and windows are shortened."""

import math
import re
import time

import httpx
import yaml

from cluster import free_address
from processes import Process
from waiting import WAIT_MAX_S, until

INTERVAL = "500ms"
# A few missed scrapes on a busy machine fire nothing.
FOR = "2s"
WINDOW = "8s"
DURATION = re.compile(r"\[\d+[smhd]\]")


def shortened(expression):
    return DURATION.sub(f"[{WINDOW}]", expression)


class Prometheus:
    def __init__(self, program, folder, config, rules, targets):
        """`targets`: addresses by job."""
        self.began = time.time()
        self.url = f"http://{free_address()}"
        self._client = httpx.Client(base_url=self.url, timeout=WAIT_MAX_S)
        place = folder / "prometheus"
        place.mkdir()
        (place / "rules.yaml").write_text(yaml.safe_dump(_quick_rules(rules)))
        (place / "prometheus.yaml").write_text(yaml.safe_dump(_quick_config(config, place, targets)))
        command = [program, f"--config.file={place / 'prometheus.yaml'}", f"--storage.tsdb.path={place / 'data'}"]
        command += [f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=warn"]
        self._process = Process(command, folder, "prometheus")
        until(self._is_ready, lambda: f"Prometheus serves; {self._process.log()}")

    def _is_ready(self):
        assert self._process.is_running(), self._process.log()
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self):
        self._client.close()
        return self._process.stop()

    def _get(self, path, **parameters):
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def now(self, expression):
        return self._get("query", query=expression)["result"]

    def ever(self, expression):
        """The numbers that it had since the beginning, of all its series."""
        span = {"start": self.began, "end": time.time(), "step": INTERVAL}
        series = self._get("query_range", query=expression, **span)["result"]
        return [number for one in series for _, text in one["values"] if not math.isnan(number := float(text))]

    def label_values(self, metric, label):
        return self._get(f"label/{label}/values", **{"match[]": metric, "start": self.began, "end": time.time()})

    def targets(self):
        return {target["labels"]["instance"]: target["health"] for target in self._get("targets")["activeTargets"]}

    def firing(self):
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def ever_fired(self):
        return self._get(
            "series", **{"match[]": 'ALERTS{alertstate="firing"}', "start": self.began, "end": time.time()}
        )


def _quick_rules(rules):
    quick = yaml.safe_load(yaml.safe_dump(rules))
    for group in quick["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            rule["expr"] = shortened(rule["expr"])
            if "for" in rule:
                rule["for"] = FOR
    return quick


def _quick_config(config, place, targets):
    """The deployed one with our processes in it: its jobs, and the labels of each."""
    quick = yaml.safe_load(yaml.safe_dump(config))
    quick["global"] |= {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
    quick["rule_files"] = [str(place / "rules.yaml")]
    jobs = {job["job_name"]: job for job in quick["scrape_configs"]}
    assert jobs.keys() <= targets.keys()
    labels = next(iter(jobs.values()))["static_configs"][0]["labels"]
    quick["scrape_configs"] = [
        # A job that only the chart has gets the labels of the others.
        {"job_name": name, **jobs.get(name, {}), "static_configs": [{"targets": addresses, "labels": labels}]}
        for name, addresses in targets.items()
    ]
    return quick
