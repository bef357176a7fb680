"""Every metric by its name, type, unit, labels and bounds, as metrics.json lists them: none is missing, none is more.

Dashboards and alerts go by that list. `--write-metrics` writes it from a running cluster, to be read before it is
kept.
"""

import json
import pathlib
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from absent import ABSENT
from cluster import Cluster, kvasir
from collector import Collector, prometheus_name
from exposition import parse, samples
from waiting import until

LIST = pathlib.Path(__file__).with_name("metrics.json")
PAGE = LIST.parents[2] / "docs/operate.md"
ROW = re.compile(r"\| `(\w+)` \| (\w+) \| ([^|]*) \| (.*) \|")
QUOTED = re.compile(r"`(\w+)`")
# Doubled, or as OpenTelemetry's conventions for generative models list them.
GEN_AI_BOUNDS = {
    "gen_ai_server_request_duration_seconds": [0.01 * 2**power for power in range(14)],
    "gen_ai_server_time_to_first_token_seconds": [
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    ],
    "gen_ai_server_time_per_output_token_seconds": [
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
    ],
    "gen_ai_client_token_usage": [4.0**power for power in range(14)],
}
RARE = [
    "kvasir_migration_pause_seconds",
    "kvasir_reshard_pause_seconds",
    "kvasir_detection_duration_seconds",
    "kvasir_recovery_duration_seconds",
]
# What they stand for elsewhere is not ours to choose.
FOREIGN = {"target_info"}
# More than the largest family has: refusals by reason, and blocks of two groups by state.
SERIES_MAX = 20
LINT_EXCEPTIONS = ["metric names should not contain ':'"]


class Scene:
    """A cluster to which everything has happened that a metric tells of."""

    def __init__(self, folder):
        self.collector = Collector(folder, "metrics")
        otlp = ["--otlp", self.collector.grpc]
        self.cluster = Cluster(folder, [1, 2], ["--vllm-metrics", *otlp], [*otlp], OTEL_METRIC_EXPORT_INTERVAL="500")
        self.gateway = self.cluster.add_gateway()
        self.at_start = parse(self.cluster.text())
        self._ask()
        self._migrate()
        self._reshard()
        self._see("w3")
        self._lose("w3")
        self.families = parse(self.cluster.text())

    def _ask(self):
        cluster = self.cluster
        assert cluster.complete([1, 2, 3], n=2).status_code == 200
        chat = {"model": cluster.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert cluster.client.post(f"{cluster.http}/v1/chat/completions", json=chat).status_code == 200
        # Its length is found out where tokens are counted.
        assert cluster.complete([1] * 9000, max_tokens=1).status_code == 400

    def _migrate(self):
        cluster = self.cluster
        stream = cluster.start([5, 6, 7], max_tokens=600)
        (sequence,) = cluster.await_status(lambda status: status["sequences"], "it runs")["sequences"]
        moved = cluster.migrate(sequence["request_id"], 1 - sequence["group"])
        assert moved.returncode == 0, moved.stderr
        stream.drop()
        cluster.await_idle()

    def _reshard(self):
        cluster = self.cluster
        cluster.add_worker("w3")
        cluster.await_status(lambda status: status["spares"], "a spare")
        resharded = kvasir("reshard", "--group", 0, "--ranks", 2, "--endpoint", cluster.grpc)
        assert resharded.returncode == 0, resharded.stderr
        cluster.await_serving([2, 2])

    def _see(self, worker):
        """A rank is known to whoever scrapes, and to the collector, before it goes."""
        assert of_worker(samples(self.cluster.text()), worker)
        until(lambda: self.times(worker), "the collector knows the rank")

    def _lose(self, worker):
        self.lost = worker
        self.cluster.workers.pop(worker).kill()
        self.cluster.await_serving([1, 2])
        assert self.cluster.complete([1, 2, 3]).status_code == 200

    def times(self, worker):
        """When the collector's points of a rank were made."""
        points = self.collector.receive().points.items()
        return [time for (_, _, (_, labels)), (time, _) in points if ("worker", worker) in labels]

    def worker_families(self):
        """Of all workers together: not each has sent cells."""
        found = {}
        for worker in self.cluster.workers.values():
            found |= parse(self.cluster.text(worker.metrics))
        return found

    def stop(self):
        assert set(self.cluster.stop().values()) == {0}
        self.collector.stop()


@pytest.fixture(scope="module")
def scene(folder):
    scene = Scene(folder)
    yield scene
    scene.stop()


@pytest.fixture(scope="module")
def listed(scene, pytestconfig):
    if pytestconfig.getoption("--write-metrics"):
        write(scene)
    return json.loads(LIST.read_text())


def write(scene):
    for part, families in (("coordinator", own(scene)), ("worker", scene.worker_families())):
        wanted = described(families, {}).keys()
        until(lambda: units(scene, f"kvasir-{part}").keys() >= wanted, "all metrics are sent")
    vllm = {name: family for name, family in scene.families.items() if name.startswith("vllm:")}
    found = {
        "coordinator": described(own(scene), units(scene, "kvasir-coordinator")),
        "vllm": described(vllm, {}),
        "worker": described(scene.worker_families(), units(scene, "kvasir-worker")),
    }
    LIST.write_text("{\n" + ",\n".join(map(block, found.items())) + "\n}\n")


def block(item):
    part, metrics = item
    lines = [f"    {json.dumps(name)}: {json.dumps(told)}" for name, told in sorted(metrics.items())]
    return f"  {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n  }"


def own(scene):
    return {name: family for name, family in scene.families.items() if not name.startswith("vllm:")}


def described(families, units):
    found = {}
    for name, family in families.items():
        if name in FOREIGN:
            continue
        found[name] = {"type": family.kind, "unit": units.get(name, ""), "labels": sorted(family.label_names())}
        if family.kind == "histogram":
            bounds = list(family.bounds().values())
            assert all(other == bounds[0] for other in bounds), f"{name}: its series have different bounds"
            found[name]["bounds"] = bounds[0]
    return found


def units(scene, service):
    """As the collector was told them, by Prometheus' names."""
    types = scene.collector.receive().types
    return {prometheus_name(name, unit, kind): unit for (of, name), (kind, unit) in types.items() if of == service}


def same(found, wanted):
    missing, more = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    assert not missing and not more, f"missing: {sorted(missing)}, not listed: {sorted(more)}"
    different = {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]}
    assert not different, f"found and listed differ: {different}"


def without_units(metrics):
    return {name: {**told, "unit": ""} for name, told in metrics.items()}


def test_the_coordinator_has_the_listed_metrics(scene, listed):
    same(described(scene.families, {}), without_units(listed["coordinator"] | listed["vllm"]))


def test_a_worker_has_the_listed_metrics(scene, listed):
    same(described(scene.worker_families(), {}), without_units(listed["worker"]))


def test_a_gateway_has_none_of_its_own(scene):
    assert set(parse(scene.cluster.text(scene.gateway.metrics))) <= FOREIGN


@pytest.mark.parametrize("service", ["coordinator", "worker"])
def test_a_collector_is_told_the_listed_units(scene, listed, service):
    wanted = {name: told["unit"] for name, told in listed[service].items()}
    until(lambda: units(scene, f"kvasir-{service}").keys() >= wanted.keys(), "all metrics are sent")
    assert units(scene, f"kvasir-{service}") == wanted


@pytest.mark.parametrize("name", RARE)
def test_what_is_rare_is_shown_before_it_happens(scene, name):
    """A rate is that of a series that was there before: the first of its kind would never be seen."""
    assert name in scene.at_start


def test_both_doors_show_the_same(scene):
    found = [described(parse(scene.cluster.text(url)), {}) for url in (scene.cluster.http, scene.cluster.metrics)]
    assert found[0] == found[1]


def test_all_is_explained(scene):
    for name, family in {**scene.families, **scene.worker_families()}.items():
        assert len(family.help) > 5, f"{name} has no help"


@pytest.mark.parametrize("role", ["coordinator", "worker"])
def test_promtool_finds_nothing_wrong(scene, promtool, role):
    url = scene.cluster.metrics if role == "coordinator" else scene.cluster.workers["w0"].metrics
    found = lint(promtool, scene.cluster.text(url))
    assert [line for line in found if not any(told in line for told in LINT_EXCEPTIONS)] == []
    assert all(line.startswith("vllm:") for line in found)


def lint(promtool, text):
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    return (checked.stdout + checked.stderr).splitlines()


@pytest.mark.parametrize("name", GEN_AI_BOUNDS)
def test_bounds_are_those_of_the_conventions(scene, name):
    for bounds in scene.families[name].bounds().values():
        assert bounds == pytest.approx(GEN_AI_BOUNDS[name], rel=1e-9)


@pytest.mark.parametrize("part", ["coordinator", "worker"])
def test_names_say_type_and_unit(listed, part):
    for name, told in listed[part].items():
        assert name.startswith(("kvasir_", "gen_ai_")), name
        assert name.endswith("_total") == (told["type"] == "counter"), name
        for unit, suffix in {"s": "_seconds", "By": "_bytes"}.items():
            assert (told["unit"] == unit) == name.removesuffix("_total").endswith(suffix), f"{name}, {told['unit']}"


def documented():
    """Rows of the operators' page: name, type, labels, and the words that its explanation quotes."""
    rows = [ROW.fullmatch(line) for line in PAGE.read_text().splitlines()]
    for name, kind, labels, told in (row.groups() for row in rows if row):
        yield name, kind, QUOTED.findall(labels), QUOTED.findall(told)


def test_the_operators_page_lists_what_there_is(listed):
    """The other way round, it says in general which counters there are besides."""
    shown = listed["coordinator"] | listed["worker"]
    rows = [row for row in documented() if row[0] not in ABSENT]
    assert len(rows) > 50
    wrong = {name for name, kind, labels, _ in rows if (kind, sorted(labels)) != _described(shown.get(name))}
    assert not wrong


def _described(told):
    return told and (told["type"], told["labels"])


def test_the_operators_page_quotes_the_values_of_labels(scene):
    wrong = {}
    for name, _, labels, words in documented():
        (*_, last) = labels or [None]
        family = scene.families.get(name)
        if words and family and last not in {None, "group"}:
            values = {dict(series)[last] for series in family.series()}
            if values != set(words):
                wrong[name] = values ^ set(words)
    assert not wrong


def test_every_process_says_what_it_is(scene):
    """So that one sees which version runs where, also while a cluster is replaced piece by piece."""
    for worker in scene.cluster.workers.values():
        info = parse(scene.cluster.text(worker.metrics)).get("kvasir_build_info")
        assert info and info.label_names() == {"model", "numerics_id", "version"}, worker.name


def test_no_family_has_many_series(scene):
    for name, family in scene.families.items():
        assert len(family.series()) <= SERIES_MAX, f"{name}: {len(family.series())}"


def test_clients_make_no_series(scene):
    """Whatever they call themselves, their requests, or a model that is not there."""
    cluster = scene.cluster
    ask(cluster, 0)
    before = {name: family.series() for name, family in parse(cluster.text()).items()}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda nth: ask(cluster, nth), range(1, 17)))
    cluster.await_idle()
    after = {name: family.series() for name, family in parse(cluster.text()).items()}
    assert after == before


def ask(cluster, nth):
    named = {"X-Request-Id": f"request-{nth}", "User-Agent": f"agent-{nth}"}
    assert cluster.complete([nth, 2], headers=named, user=f"user-{nth}", max_tokens=1, priority=nth).status_code == 200
    assert cluster.complete([nth, 2], model=f"model-{nth}", max_tokens=1).status_code == 404
    assert cluster.client.get(f"{cluster.http}/path-{nth}").status_code == 404


def of_worker(found, worker):
    return {key for key in found if ("worker", worker) in key[1]}


def test_a_rank_that_has_gone_has_no_series(scene):
    """From the first scrape on."""
    first = {key for family in scene.families.values() for key in family.samples}
    assert {name for name, _ in of_worker(first, "w0")} >= {"kvasir_rank_weight_bytes", "kvasir_rank_kv_bytes"}
    assert not of_worker(first, scene.lost)
    assert not of_worker(samples(scene.cluster.text()), scene.lost)


def test_what_is_known_as_one_is_told_once(scene):
    """Blocks that there were before are no second configuration."""
    for name in ("kvasir_cache_config_info", "vllm:cache_config_info", "kvasir_build_info"):
        assert len(scene.families[name].series()) == 1, scene.families[name].series()


def test_a_collector_is_told_no_more_of_a_rank_that_has_gone(scene):
    """What was read for a scrape before the loss may reach the collector once more, and not twice."""
    begun = max(scene.times("w0"))
    until(lambda: max(scene.times("w0")) > begun, "the others are told again")
    assert max(scene.times(scene.lost)) <= begun
