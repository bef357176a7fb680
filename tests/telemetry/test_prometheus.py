"""A real Prometheus watches a live cluster: every panel gets data, and the right alerts fire and resolve.

The rules are a copy of the deployed ones in which every `for:` and every window is a few seconds; see scraper.py.
"""

import json
import pathlib
import re
import subprocess

import pytest
import yaml

from absent import ABSENT
from cluster import Cluster, kvasir
from scraper import WINDOW, Prometheus, shortened
from waiting import until

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus.yaml"
RULES = DEPLOY / "helm/kvasir/alerts.yaml"
DASHBOARDS = sorted((DEPLOY / "helm/kvasir/dashboards").glob("*.json"))
LISTED = json.loads(pathlib.Path(__file__).with_name("metrics.json").read_text())
# Prometheus' own
OTHERS = {"up", "ALERTS"}
# Panels that show something only after what cannot be provoked here.
WITHOUT_DATA = {}
# Alerts that are not provoked, and why. Their expressions are evaluated all the same.
NOT_PROVOKED = {
    "KvasirNoLeader": "one coordinator, which leads",
    "KvasirTwoLeaders": "no election",
    "KvasirRegistryAway": "the registry is in the process",
    "KvasirCacheFull": "a cache that is full for long slows all else down",
    "KvasirFirstTokenSlow": "would take requests that wait for longer than the test",
    "KvasirRequestsFail": "would take workers that are away for longer than the test",
    "KvasirCellsRefused": "takes a peer that sends wrong bytes",
    "KvasirCellsCorrupt": "takes memory that changes",
    "KvasirBlocksUnaccounted": "takes a fault in the books",
    "KvasirMigrationsFail": "takes a target that dies at the right moment",
    "KvasirReshardsFail": "takes a rank that dies at the right moment",
    "KvasirConnectionsRefused": "takes a cluster with certificates and many strangers",
}
PROVOKED = {
    "killed": {"KvasirRankLost", "KvasirGroupShort", "KvasirWorkerDown", "KvasirGatewayDown"},
    "overloaded": {"KvasirRequestsShed", "KvasirQueueGrows"},
    "no_coordinator": {"KvasirCoordinatorDown", "KvasirNoCoordinator", "KvasirWorkerDisconnected"},
    "no_workers": {"KvasirNoGroupServes", "KvasirWorkerDown"},
}
QUEUE = 14
# Of each group one
LOST = ("w3", "w2")


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions():
    """Of all dashboards: where, and the expression with its variables filled in."""
    found = []
    for path in DASHBOARDS:
        found += [(path.stem, filled(expression)) for expression in _walk(json.loads(path.read_text()))]
    return found


def _walk(node):
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for child in node.values():
            yield from _walk(child)
    elif isinstance(node, list):
        for child in node:
            yield from _walk(child)


def filled(expression):
    for variable, text in {"$__rate_interval": WINDOW, "$__range": "1h", "$cluster": ".*", "$group": ".*"}.items():
        expression = expression.replace(variable, text)
    assert "$" not in expression, f"an unknown variable: {expression}"
    return re.sub(r"\[1m\]", f"[{WINDOW}]", expression)


def variables():
    """Queries of dashboards' variables: metric and label."""
    found = set()
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                text = variable["query"]["query"].replace("$cluster", ".*")
                found.add(re.fullmatch(r"label_values\((.*), (\w+)\)", text).groups())
    return sorted(found)


def names(expression):
    """Metrics that it reads: not its functions, and not its labels."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(by|on|without|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return {word for word in words if word.startswith(("kvasir_", "gen_ai_", "vllm:")) or word in OTHERS}


class Watched:
    """The run: what is done, and what Prometheus makes of it. `fired` and `resolved` tell of each stage."""

    def __init__(self, folder, program):
        self.folder = folder
        self.cluster = cluster = Cluster(
            folder, [1, 2], ["--sequences", 2, "--queue", QUEUE, "--no-rebalance"], kv="128MiB"
        )
        cluster.add_worker("w3")
        cluster.await_status(lambda status: status["spares"], "a spare")

        def place(url):
            return url.removeprefix("http://")

        targets = {
            "kvasir-coordinator": [place(cluster.metrics)],
            "kvasir-gateway": [place(cluster.add_gateway().metrics)],
            "kvasir-worker": [place(worker.metrics) for worker in cluster.workers.values()],
        }
        config = yaml.safe_load(CONFIG.read_text())
        self.prometheus = Prometheus(program, folder, config, yaml.safe_load(RULES.read_text()), targets)
        self.fired, self.resolved = {}, {}

    def run(self):
        until(lambda: set(self.prometheus.targets().values()) == {"up"}, lambda: self.prometheus.targets())
        self.load()
        self.migrate()
        self.load()
        self.reshard()
        self.load()
        self.healthy = self.prometheus.firing()
        self._provoke("killed", self.kill, self.replace)
        self._provoke("overloaded", self.overload, self.relieve, self.ask_too_much)
        self._provoke("no_coordinator", self.cluster.coordinator.kill, self.cluster.restart_coordinator)
        self._provoke("no_workers", self.lose_workers, self.restart_workers)
        self.load()

    def _provoke(self, stage, begin, end, meanwhile=lambda: None):
        """Until the alerts of that stage have fired, not all at the same time, and until they have resolved."""
        wanted, seen = PROVOKED[stage], set()

        def all_fired():
            meanwhile()
            seen.update(self.prometheus.firing())
            return wanted <= seen

        begin()
        until(all_fired, lambda: f"{stage}: {wanted} fire; there were {seen}")
        self.fired[stage] = wanted & seen
        end()
        until(
            lambda: not self.prometheus.firing() & wanted, lambda: f"{stage}: these resolve: {self.prometheus.firing()}"
        )
        self.resolved[stage] = wanted - self.prometheus.firing()

    def load(self):
        """Until Prometheus has seen it grow: prompts, answers, and a beginning that is found again."""
        before = self._tokens()
        prompt = list(range(100, 140))
        chat = {"model": self.cluster.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}

        def asked():
            assert self.cluster.complete(prompt, max_tokens=8).status_code == 200
            assert self.cluster.client.post(f"{self.cluster.http}/v1/chat/completions", json=chat).status_code == 200
            return self._tokens() > before

        until(asked, "a rate of tokens")

    def _tokens(self):
        found = self.prometheus.now("kvasir_generation_tokens_total")
        return max((float(one["value"][1]) for one in found), default=0)

    def migrate(self):
        """There and back: a rate takes two."""
        stream = self.cluster.start([4, 5, 6], max_tokens=4000)
        for count in (1, 2):
            (sequence,) = self.cluster.status()["sequences"]
            moved = self.cluster.migrate(sequence["request_id"], 1 - sequence["group"])
            assert moved.returncode == 0, moved.stderr
            self.await_value("sum(kvasir_migration_pause_seconds_count)", count)
        stream.drop()
        self.cluster.await_idle()

    def await_value(self, expression, wanted):
        def found():
            result = self.prometheus.now(expression)
            return result and float(result[0]["value"][1]) == wanted

        until(found, lambda: f"{expression} is {wanted}; it is {self.prometheus.now(expression)}")

    def reshard(self):
        resharded = kvasir("reshard", "--group", 0, "--ranks", 2, "--endpoint", self.cluster.grpc)
        assert resharded.returncode == 0, resharded.stderr
        self.cluster.await_serving([2, 2])
        self.await_value("sum(kvasir_reshard_pause_seconds_count)", 1)

    def kill(self):
        """A rank of each group, one after the other, and the gateway."""
        for count, worker in enumerate(LOST, 1):
            self.cluster.workers[worker].kill()
            self.await_value("sum(kvasir_recovery_duration_seconds_count)", count)
        self.cluster.gateways[0].kill()

    def replace(self):
        """The groups take the new workers in when they have work again."""
        self.cluster.add_gateway(metrics=self.cluster.gateways[0].metrics.removeprefix("http://"))
        for worker in LOST:
            self._start(worker)

        def are_taken_in():
            streams = [self.cluster.send([nth, 1], max_tokens=16) for nth in range(4)]
            for stream in streams:
                stream.read()
            return all(len(group["ranks"]) == 2 for group in self.cluster.status()["groups"])

        until(are_taken_in, lambda: f"the new workers are taken in: {self.cluster.status()}")

    def _start(self, name):
        """Where Prometheus looks for it."""
        place = self.cluster.workers[name].metrics.removeprefix("http://")
        self.cluster.add_worker(name, metrics=place)

    def overload(self):
        """Two run in each group, the queue fills and is full, and what comes then is refused."""
        self.streams = [self.cluster.start([nth, 1], max_tokens=4000) for nth in range(4)]

    def ask_too_much(self):
        if len(self.streams) < 4 + QUEUE:
            self.streams.append(self.cluster.send([len(self.streams), 1], max_tokens=4000))
        else:
            self.cluster.complete([1, 2], max_tokens=1)

    def relieve(self):
        for stream in self.streams:
            stream.drop()
        self.cluster.await_idle()

    def lose_workers(self):
        for worker in self.cluster.workers.values():
            worker.kill()

    def restart_workers(self):
        for name in list(self.cluster.workers):
            self._start(name)

        def serving(status):
            return all(group["state"] == "serving" for group in status["groups"])

        self.cluster.await_status(serving, "all groups serve again")

    def stop(self):
        self.prometheus.stop()
        return self.cluster.stop()


@pytest.fixture(scope="module")
def watched(folder, prometheus):
    watched = Watched(folder, prometheus)
    watched.run()
    yield watched
    assert set(watched.stop().values()) == {0}


def test_deployed_files_are_valid(promtool):
    for command in (["check", "rules", RULES], ["check", "config", "--syntax-only", CONFIG]):
        checked = subprocess.run([promtool, *map(str, command)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_expressions_read_listed_metrics():
    """A name that nobody shows is a panel without data, and an alert that never fires."""
    listed = set(OTHERS) | set(ABSENT)
    for part in LISTED.values():
        for name, told in part.items():
            parts = ("_bucket", "_sum", "_count") if told["type"] == "histogram" else ("",)
            listed |= {name + part for part in parts}
    found = (
        [("alerts", rule["expr"]) for rule in rules()]
        + expressions()
        + [("variable", metric) for metric, _ in variables()]
    )
    assert len(found) > 50
    unknown = {(where, name) for where, expression in found for name in names(expression) - listed}
    assert not unknown


def test_every_alert_is_provoked_or_said_why_not():
    provoked = set().union(*PROVOKED.values())
    assert not provoked & NOT_PROVOKED.keys()
    assert {rule["alert"] for rule in rules()} == provoked | NOT_PROVOKED.keys()


def test_what_is_absent_is(watched):
    shown = {name for name, _ in watched.cluster.samples()}
    assert not shown & ABSENT.keys(), "these are shown now: their panels are to have data"


def test_every_panel_gets_data(watched):
    empty = {}
    for where, expression in expressions():
        if not watched.prometheus.ever(expression) and not names(expression) & ABSENT.keys():
            empty[where, expression] = "no data"
    assert empty.keys() == WITHOUT_DATA.keys()


def test_every_variable_has_values(watched):
    for metric, label in variables():
        assert watched.prometheus.label_values(metric, label), (metric, label)


def test_every_alert_can_be_evaluated(watched):
    """The query fails if not."""
    for rule in rules():
        watched.prometheus.ever(shortened(rule["expr"]))


def test_no_alert_fires_while_all_is_well(watched):
    assert watched.healthy == set()


@pytest.mark.parametrize("stage", PROVOKED)
def test_the_right_alerts_fire_and_resolve(watched, stage):
    assert watched.fired[stage] == PROVOKED[stage]
    assert watched.resolved[stage] == PROVOKED[stage]


def test_no_other_alert_has_fired(watched):
    fired = {alert["alertname"] for alert in watched.prometheus.ever_fired()}
    assert fired == set().union(*PROVOKED.values())
