"""The live page at `/`: what it shows of a cluster, and how it is used."""

import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from processes import free_ports

SHOWN_MAX_MS = 1000
PHONE = {"width": 320, "height": 640}
HOSTILE = "<b id=hostile onclick=alert(1)>name</b>"


def test_all_comes_from_the_door_and_nothing_goes_wrong(cluster, look):
    page = look(cluster.url).live()
    hosts = {urlsplit(url).netloc for url in page.asked}
    assert hosts == {urlsplit(cluster.url).netloc}
    policy = cluster.http.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy


def test_each_rank_is_shown_with_what_it_holds(cluster, look):
    page = look(cluster.url).live()
    groups = cluster.status()["groups"]
    whole = {kind: max(rank["units"][kind][1] for group in groups for rank in group["ranks"]) for kind in ("ffn", "vocab")}

    def told(rank):
        held = {kind: rank["units"][kind][1] - rank["units"][kind][0] for kind in whole}
        said = {kind: f"{held[kind]}/{whole[kind]}" for kind in whole}
        return {"rank": rank["rank"], "worker": rank["worker"], "kv_heads": rank["kv_heads"], **said}

    assert page.ranks() == {str(group["id"]): [told(rank) for rank in group["ranks"]] for group in groups}
    assert {group: len(ranks) for group, ranks in page.ranks().items()} == {"0": 1, "1": 2}


def test_the_head_says_which_cluster_this_is(cluster, look):
    page = look(cluster.url).live()
    status = cluster.status()
    expect(page.find("#model")).to_have_text(status["model"])
    expect(page.find("#ready")).to_have_text("ready")
    expect(page.find("#coordinator")).to_have_text(status["coordinator"])
    expect(page.find("#leader")).to_have_text("leads")


def test_the_blocks_of_a_group_are_counted_by_state(cluster, look):
    page = look(cluster.url).live()
    with cluster.running("blocks"):
        held = page.find('.group [data-blocks="held"] dd')
        expect(held.filter(has_text="1").first).to_be_visible()
        states = page.page.evaluate(
            """() => [...document.querySelectorAll(".group")].map((group) =>
                 [...group.querySelectorAll("[data-blocks] dd")].map((number) => Number(number.textContent.replaceAll(",", ""))))"""
        )
    assert [sum(numbers) for numbers in states] == [group["blocks"]["total"] for group in cluster.status()["groups"]]


def test_a_sequence_is_shown_while_it_runs(cluster, look):
    page = look(cluster.url).live()
    with cluster.running("shown") as sequence:
        row = page.find(f'.sequence[data-request="{sequence["request_id"]}"]')
        expect(row).to_be_visible()
        expect(row.locator(".where")).to_have_text(f"G{sequence['group']}")
        expect(page.find("#speed-now")).not_to_have_text("0")
    expect(row).to_have_count(0)


def test_names_of_others_are_text(cluster, look):
    page = look(cluster.url).live()
    with cluster.running(HOSTILE):
        expect(page.find(".sequence .request", has_text=HOSTILE)).to_be_visible()
        page.find(".sequence", has_text=HOSTILE).click()
        expect(page.find("#detail-fields")).to_contain_text(HOSTILE)
        expect(page.find("#hostile")).to_have_count(0)


def test_a_migration_is_shown_within_a_second_of_its_start(cluster, look):
    page = look(cluster.url).live()
    with cluster.running("moved") as sequence:
        source, target = sequence["group"], 1 - sequence["group"]
        (done,) = cluster.migrate(sequence["request_id"], target)["migrations"]
        assert done["outcome"] == "moved"
        lane = page.find(f'.lane[data-lane="migration"][data-target="{target}"][data-ended="moved"]')
        expect(lane).to_contain_text("pause")
        expect(page.find(f'.arc[class~="migration"][data-arc="{source}-{target}"]')).to_have_count(1)
        began = page.find('#news-list [data-kind="migration_began"]').first
        expect(page.find('#news-list [data-kind="migration_ended"]').first).to_be_visible()
        began_ms = int(began.get_attribute("data-time"))
        row = page.find(f'.sequence[data-request="{sequence["request_id"]}"]')
        expect(row.locator(".where")).to_have_text(f"G{target}")
    lanes = [lane["at"] - began_ms for lane in page.witnessed("lanes") if lane["lane"] == "migration"]
    arcs = [arc["at"] - began_ms for arc in page.witnessed("arcs") if arc["arc"] == f"{source}-{target}"]
    assert lanes and arcs, "both were there"
    assert max(lanes[0], arcs[0]) < SHOWN_MAX_MS
    # It stays for a while, and goes.
    expect(page.find(".lane")).to_have_count(0)
    expect(page.find("#no-lanes")).to_contain_text(f"migration from group {source} to {target}, moved, pause")


def test_a_reshard_is_shown(cluster, look):
    page = look(cluster.url).live()
    for ranks in (1, 2):
        assert cluster.reshard(1, ranks)["outcome"] == "switched"
        lane = page.find('.lane[data-lane="reshard"][data-source="1"][data-ended="switched"]')
        expect(lane).to_contain_text(f"{3 - ranks} \u2192 {ranks} rank")
        expect(page.find('.group[data-group="1"] .rank')).to_have_count(ranks)
        expect(page.find("#spares .spare")).to_have_count(2 - ranks)
        expect(page.find(".lane")).to_have_count(0)
    expect(page.find("#no-lanes")).to_contain_text("reshard of group 1, switched, pause")
    held = [head for rank in page.ranks()["1"] for head in rank["kv_heads"]]
    assert held == page.ranks()["0"][0]["kv_heads"]


def test_the_answer_streams_and_is_the_whole_one(cluster, look):
    prompt, tokens = "Name three rivers of Europe.", 24
    page = look(cluster.url).live()
    page.find("#prompt").fill(prompt)
    page.find("#max-tokens").fill(str(tokens))
    page.find("#temperature").fill("0")
    page.find("#send").click()
    expect(page.find("#play-status")).to_contain_text("tokens/s")
    expect(page.find("#answer")).to_have_attribute("aria-busy", "false")
    assert page.find("#answer").text_content() == cluster.whole_answer(prompt, tokens)
    lengths = page.witnessed("lengths")
    assert lengths == sorted(lengths) and len(lengths) > 3, "it came in several steps"


def test_an_answer_can_be_stopped(cluster, look):
    page = look(cluster.url).live()
    page.find("#prompt").fill("Count from one to a thousand, in words.")
    page.find("#max-tokens").fill("3000")
    page.find("#send").click()
    expect(page.find("#answer")).not_to_be_empty()
    page.find("#stop").click()
    expect(page.find("#play-status")).to_contain_text("stopped")
    expect(page.find("#stop")).to_be_disabled()
    # The cluster has stopped too.
    expect(page.find(".sequence")).to_have_count(0)
    page.wrong = [text for text in page.wrong if "net::ERR_ABORTED" not in text]


def test_what_the_server_refuses_is_told_in_its_words(cluster, look):
    page = look(cluster.url).live()
    page.find("#max-tokens").fill("1000000")
    body = {"model": cluster.model(), "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1000000}
    refused = cluster.http.post("/v1/chat/completions", json=body)
    page.find("#prompt").fill("Hi")
    page.find("#send").click()
    expect(page.find("#play-status")).to_contain_text(refused.json()["error"]["message"])
    page.wrong.clear()


def test_the_keyboard_is_enough(cluster, look):
    page = look(cluster.url).live()
    focused = page.find(":focus")
    for _ in range(40):
        page.page.keyboard.press("Tab")
        if "rank" in (focused.get_attribute("class") or "").split():
            break
    rank = focused.get_attribute("data-worker")
    assert rank, "a rank can be reached"
    outline = focused.evaluate("(node) => getComputedStyle(node).outlineStyle")
    assert outline != "none", "the focus can be seen"
    page.page.keyboard.press("Enter")
    expect(page.find("#detail")).to_be_visible()
    expect(page.find("#detail-title")).to_be_focused()
    expect(page.find("#detail-fields")).to_contain_text(rank)
    page.page.keyboard.press("Escape")
    expect(page.find("#detail")).to_be_hidden()
    assert focused.get_attribute("data-worker") == rank, "the focus is where it was"


def test_the_focus_stays_while_the_page_changes(cluster, look):
    page = look(cluster.url).live()
    with cluster.running("first") as first, cluster.running("second"):
        row = page.find(f'.sequence[data-request="{first["request_id"]}"]')
        row.focus()
        before = row.locator(".tokens").text_content()
        expect(row.locator(".tokens")).not_to_have_text(before)
        expect(row).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desk", "phone"])
def test_it_fits_and_follows_the_scheme(cluster, look, size, scheme, tmp_path):
    options = {"viewport": PHONE} if size == "phone" else {}
    page = look(cluster.url, color_scheme=scheme, **options).live()
    with cluster.running("pictured-0") as sequence, cluster.running("pictured-1"):
        expect(page.find(".sequence")).to_have_count(2)
        cluster.migrate(sequence["request_id"], 1 - sequence["group"])
        expect(page.find(".lane").last).to_be_visible()
        folder = Path(os.environ.get("KVASIR_SCREENSHOTS") or tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        page.page.screenshot(path=folder / f"{size}-{scheme}.png", full_page=True)
        page.find(".rank").first.click()
        expect(page.find("#detail")).to_be_visible()
        page.page.screenshot(path=folder / f"{size}-{scheme}-detail.png")
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the page"
    red, green, blue = (int(part) for part in page.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"))
    assert (red + green + blue < 3 * 64) == (scheme == "dark")


def test_a_lost_rank_stays_in_sight(kvasir, look):
    process = kvasir.up("--workers", "2")
    try:
        page = look(process.ready["http"]).live()
        expect(page.find(".rank")).to_have_count(2)
        expect(page.find("#fault-count")).to_have_text("no faults")
        lost = process.ready["workers"][1]
        os.kill(lost["pid"], signal.SIGKILL)
        expect(page.find("#fault-list")).to_contain_text(lost["id"], timeout=30_000)
        expect(page.find("#fault-count")).to_contain_text("fault")
        # The group goes on with the other; the fault is still told.
        expect(page.find(".rank")).to_have_count(1, timeout=30_000)
        expect(page.find("#ready")).to_have_text("ready", timeout=30_000)
        expect(page.find("#fault-list")).to_contain_text(lost["id"])
    finally:
        process.stop()


def test_the_page_outlives_its_coordinator(kvasir, look):
    grpc, http = free_ports(2)
    flags = ["--workers", "2"]
    coordinator = kvasir.coordinator(grpc, http, *flags)
    workers = [kvasir.worker(grpc, name) for name in ("left", "right")]
    try:
        page = look(f"http://127.0.0.1:{http}").live()
        expect(page.find(".rank")).to_have_count(2)
        page.page.evaluate("window.stillHere = true")
        coordinator.kill()
        expect(page.find("body")).to_have_attribute("data-connection", "lost")
        expect(page.find("#stale-text")).to_contain_text("does not answer")
        coordinator = kvasir.coordinator(grpc, http, *flags)
        expect(page.find("body")).to_have_attribute("data-connection", "live")
        expect(page.find("#ready")).to_have_text("ready", timeout=60_000)
        expect(page.find(".rank")).to_have_count(2, timeout=60_000)
        assert page.page.evaluate("window.stillHere") is True, "it was not loaded again"
        expect(page.find("#news-list")).to_contain_text("The connection is back.")
        # While nobody listened, the browser could not but say so.
        page.wrong = [text for text in page.wrong if "ERR_" not in text]
    finally:
        for worker in workers:
            worker.stop()
        coordinator.stop()


def test_a_cluster_with_keys_asks_for_an_administrators(kvasir, look, tmp_path):
    keys = tmp_path / "keys.jsonl"
    admin = kvasir.run("key", "ops", "--admin", "--add-to", str(keys))["key"]
    other = kvasir.run("key", "ada", "--add-to", str(keys))["key"]
    process = kvasir.up("--workers", "1", "--api-keys", str(keys))
    try:
        page = look(process.ready["http"])
        expect(page.find("#key")).to_be_visible()
        page.find("#key-field").fill(other)
        page.page.keyboard.press("Enter")
        expect(page.find("#key-why")).to_contain_text("not enough")
        page.find("#key-field").fill(admin)
        page.page.keyboard.press("Enter")
        page.live()
        expect(page.find("#key")).to_be_hidden()
        page.wrong = [text for text in page.wrong if not any(code in text for code in ("401", "403", "ERR_ABORTED"))]
    finally:
        assert process.stop() == 0


def test_a_gateway_alone_offers_the_playground(kvasir, cluster, look):
    gateway = kvasir.gateway(cluster.grpc_url)
    try:
        page = look(gateway.ready["http"])
        expect(page.find("#absent")).to_be_visible()
        expect(page.find("#group-list")).to_be_hidden()
        page.find("#max-tokens").fill("8")
        page.find("#send").click()
        expect(page.find("#play-status")).to_contain_text("tokens/s")
        page.wrong = [text for text in page.wrong if "404" not in text and "ERR_ABORTED" not in text]
    finally:
        gateway.stop()
