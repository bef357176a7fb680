"""What a test sees of the page, and what the browser says against it."""

from playwright.sync_api import expect

# Written down by the page's own clock: what is shown for a moment only, and how the answer grows.
WITNESS = """
window.witness = { lanes: [], arcs: [], lengths: [] };
new MutationObserver((changes) => {
  for (const change of changes) {
    for (const node of change.addedNodes) {
      if (node.dataset?.lane) witness.lanes.push({ ...node.dataset, at: Date.now() });
      if (node.dataset?.arc) witness.arcs.push({ ...node.dataset, at: Date.now() });
    }
    if (change.target.dataset?.arc) witness.arcs.push({ ...change.target.dataset, at: Date.now() });
    const answer = document.getElementById("answer");
    if (answer?.contains(change.target)) {
      const length = answer.textContent.length;
      if (length > 0 && witness.lengths.at(-1) !== length) witness.lengths.push(length);
    }
  }
}).observe(document, { childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ["data-arc", "data-lane"] });
"""


class Look:
    """A page that is open, and all that went wrong in it."""

    def __init__(self, context, url):
        self.page = context.new_page()
        self.wrong = []
        self.asked = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"{request.url}: {request.failure}"))
        self.page.on("response", lambda response: response.status >= 400 and self.wrong.append(f"{response.url}: {response.status}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(WITNESS)
        self.page.goto(url)

    def find(self, selector, **options):
        return self.page.locator(selector, **options)

    def live(self):
        """The cluster is shown. Returns itself."""
        expect(self.find("body")).to_have_attribute("data-connection", "live", timeout=30_000)
        expect(self.find(".rank").first).to_be_visible(timeout=30_000)
        return self

    def witnessed(self, what):
        return self.page.evaluate(f"window.witness.{what}")

    def ranks(self):
        """By group: of each rank its number, its worker, and the heads that are drawn as its own."""
        return self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(".group")].map((group) => [
                 group.dataset.group,
                 [...group.querySelectorAll(".rank")].map((rank) => ({
                   rank: Number(rank.dataset.rank),
                   worker: rank.dataset.worker,
                   kv_heads: [...rank.querySelectorAll(".owned")].map((cell) => Number(cell.dataset.head)),
                   ffn: rank.querySelector(".ffn .text").textContent,
                   vocab: rank.querySelector(".vocab .text").textContent,
                 })),
               ]))"""
        )
