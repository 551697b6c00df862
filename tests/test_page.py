"""samples/index.html in a real browser, at the width of a desktop and of a phone."""

import json
import shutil
import subprocess
import threading
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scripts import ROOT

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --mute-audio"
FLAGS += " --autoplay-policy=no-user-gesture-required"
# The page in a frame, since a window of its own cannot be narrower than 500 pixels; what is found goes to the server.
FRAME = """<!doctype html>
<iframe src="/samples/index.html" style="border: 0; width: WIDTHpx; height: HEIGHTpx"></iframe>
<script>
const wait = (event, thing) => new Promise(done => thing.addEventListener(event, done, {once: true}));
const name = element => element.outerHTML.slice(0, 120);

async function loads(image) {
  image.loading = "eager";
  await image.decode().catch(() => {});
  return image.naturalWidth > 100;
}

async function plays(audio) {
  audio.muted = true;
  const failure = await audio.play().then(() => "", error => error.message);
  if (!failure && audio.currentTime === 0) await wait("timeupdate", audio);
  audio.pause();
  return !failure && audio.currentTime > 0 && audio.duration > 0.5;
}

async function look(view) {
  const all = tag => [...view.document.querySelectorAll(tag)];
  const failing = async (things, test) => {
    const passed = await Promise.all(things.map(test));
    return things.filter((_, i) => !passed[i]).map(name);
  };
  const outside = box => box.left < 0 || box.right > view.innerWidth;
  const wrong = {
    "images that do not load": await failing(all("img"), loads),
    "players that do not play": await failing(all("audio"), plays),
    "dead links": await failing(all("a"), async link => (await fetch(link.href, {method: "HEAD"})).ok),
    "wider than the window": all("*").filter(e => outside(e.getBoundingClientRect())).map(name),
  };
  const count = {images: all("img").length, players: all("audio").length, links: all("a").length};
  return {width: view.innerWidth, scrolls: view.document.documentElement.scrollWidth - view.innerWidth, count, wrong};
}

const frame = document.querySelector("iframe");
wait("load", frame).then(() => look(frame.contentWindow)).catch(error => ({error: `${error}`}))
  .then(found => fetch("/found", {method: "POST", body: JSON.stringify(found)}));
</script>"""


class Files(SimpleHTTPRequestHandler):
    """The repository's files, the frame, and a place for what the browser finds."""

    def do_GET(self):
        if self.path != "/frame.html":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.frame.encode())

    def do_POST(self):
        self.server.found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.told.set()

    def copyfile(self, *files):
        with suppress(ConnectionError):  # a player takes what it needs and leaves
            super().copyfile(*files)

    def log_message(self, *_):
        pass


def seen(width: int, height: int, folder) -> dict:
    """What chromium finds in the page in a frame of that size."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=ROOT)) as server:
        server.frame = FRAME.replace("WIDTH", f"{width}").replace("HEIGHT", f"{height}")
        server.told = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder}", "--window-size=1400,1000"]
        address = f"http://127.0.0.1:{server.server_port}/frame.html"
        browser = subprocess.Popen([*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert server.told.wait(120), "the browser told nothing"
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    return server.found


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_listening_page_in_a_browser(width, height, tmp_path):
    """Nothing is wider than the window, every image loads, every player plays, no link is dead."""
    html = (ROOT / "samples" / "index.html").read_text(encoding="utf-8")
    count = {"images": html.count("<img "), "players": html.count("<audio "), "links": html.count("<a ")}
    found = seen(width, height, tmp_path)
    assert {what: where for what, where in found.pop("wrong").items() if where} == {}
    assert found == {"width": width, "scrolls": 0, "count": count} and count["players"] > 10
    assert '<meta name="viewport" content="width=device-width' in html  # else a phone shows 980 pixels, shrunk
