"""What telemetry costs: tokens a second of the same cluster without it, with metrics that are scraped, and with traces.

No test: `KVASIR_BIN=target/debug/kvasir KVASIR_MODEL=MODEL python tests/telemetry/cost.py [ROUNDS]`, in an environment with
requirements.txt. A cluster of two workers with a thread each is started anew for each measurement, the settings by turns; the
collector is rotel, which throws away what it gets. Prints medians (ranges), and what is left of the tokens without telemetry.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import httpx
import rotel

from cluster import free_address
from processes import Process, end_all
from waiting import until

SETTINGS = ("off", "metrics", "traces 1 %", "traces 100 %")
SCRAPE_EVERY_S = 1
STREAMS = "1,8"


def main(rounds):
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        try:
            grpc = collector(folder)
            for turn in range(rounds):
                for setting in SETTINGS:
                    for streams, rate in measured(folder / f"{setting}-{turn}", setting, f"http://{grpc}").items():
                        found.setdefault((streams, setting), []).append(rate)
                    print(f"round {turn + 1} of {rounds}: {setting}", file=sys.stderr)
        finally:
            end_all()
    print("| streams | " + " | ".join(SETTINGS) + " |\n|" + "---|" * (1 + len(SETTINGS)))
    for streams in sorted({streams for streams, _ in found}):
        base = statistics.median(found[streams, "off"])
        cells = [cell(found[streams, setting], base) for setting in SETTINGS]
        print(f"| {streams} | " + " | ".join(cells) + " |")


def collector(folder):
    grpc, http = free_address(), free_address()
    agent = os.path.join(os.path.dirname(rotel.__file__), "rotel-agent")
    command = [agent, "start", "--otlp-grpc-endpoint", grpc, "--otlp-http-endpoint", http, "--exporter", "blackhole"]
    command += ["--pid-file", folder / "rotel.pid", "--log-file", folder / "rotel.agent"]
    started = Process(command, folder, "rotel")
    until(lambda: "Starting Rotel" in started.output_path.read_text(), "the collector listens")
    return grpc


def measured(folder, setting, otlp):
    flags = {
        "off": [],
        "metrics": ["--metrics", "127.0.0.1:0"],
        "traces 1 %": ["--otlp", otlp, "--trace-ratio", "0.01"],
        "traces 100 %": ["--otlp", otlp, "--trace-ratio", "1"],
    }[setting]
    binary = os.environ["KVASIR_BIN"]
    up = [binary, "up", "--model", os.environ["KVASIR_MODEL"], "--workers", "2", "--grpc", "127.0.0.1:0", "--json"]
    cluster = Process(up + flags, folder, "up")
    ready = cluster.first_line()
    done = threading.Event()
    scraping = threading.Thread(target=scrape, args=(ready["metrics"], done))
    if ready["metrics"]:
        scraping.start()
    bench = [binary, "bench", "speed", "--endpoint", ready["grpc"], "--streams", STREAMS, "--runs", "3", "--json"]
    report = json.loads(subprocess.run(bench, check=True, capture_output=True, text=True).stdout)
    done.set()
    if ready["metrics"]:
        scraping.join()
    cluster.stop()
    rows = [row for row in report["rows"] if row["test"] == "decode"]
    return {row["streams"]: row["tokens_per_s"]["median"] for row in rows}


def scrape(url, done):
    while not done.wait(SCRAPE_EVERY_S):
        assert httpx.get(f"{url}/metrics").status_code == 200


def cell(rates, base):
    median = statistics.median(rates)
    return f"{median:.0f} ({min(rates):.0f}-{max(rates):.0f}), {100 * median / base:.1f} %"


if __name__ == "__main__":
    began = time.monotonic()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
