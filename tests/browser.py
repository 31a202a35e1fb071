"""Pages in a headless browser."""

import json
import re
import shutil
import subprocess
import sys

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None or sys.platform != "linux", reason="there is no chromium")
PROBE = """<script>addEventListener('load', () => setTimeout(() => {
const seen = () => [...document.querySelectorAll('.tile')].filter((tile) => tile.offsetParent).length;
const menu = document.querySelector('select'), tiles = [seen()], timing = performance.timing;
for (const option of menu ? menu.options : []) {
  menu.value = option.value;
  menu.dispatchEvent(new Event('change'));
  tiles.push(seen());
}
const loaded = performance.getEntriesByType('resource').map((each) => each.name).filter((name) => !name.startsWith('data:'));
const found = {width: document.documentElement.scrollWidth, window: innerWidth, hacked: window.hacked || false, tiles, loaded};
found.milliseconds = timing.loadEventStart - timing.navigationStart;
parent.postMessage(JSON.stringify(found), '*');
}, 50));</script></body>"""
FRAME = """<body><script>addEventListener('message', (event) => { document.body.innerHTML = '<pre>' + event.data + '</pre>'; });
</script><iframe src="probed.html" style="border:0;width:%dpx;height:900px"></iframe></body>"""


def opened(page, width):
    """What a page is like in a window of so many pixels, after each class was chosen in turn."""
    text = page.read_text(encoding="utf-8")
    page.with_name("probed.html").write_text(text.replace("</body>", PROBE), encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME % width)  # the window itself is never narrower than 500
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,950", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL).group(1))
