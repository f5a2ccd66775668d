from __future__ import annotations

import subprocess
import sys


def run(code):
  head = "import time\nfrom synclipmae_jax.data.media import watchdog\n"
  return subprocess.run([sys.executable, "-c", head + code], timeout=60).returncode


def test_a_call_without_end_ends_the_process():
  assert run("watchdog.end_process_after(0.2)\nwith watchdog.watched():\n  time.sleep(50)") == 1


def test_the_second_of_two_threads_ends_it_too():
  code = (
    "import threading\ndef hang():\n  with watchdog.watched():\n    time.sleep(50)\n"
    "watchdog.end_process_after(0.2)\nthreading.Thread(target=hang).start()\n"
    "for _ in watchdog.each(range(1, 10**9)):\n  time.sleep(0.01)"
  )
  assert run(code) == 1


def test_what_lasts_outside_of_ffmpeg_does_not():
  assert run("watchdog.end_process_after(0.2)\nfor _ in watchdog.each(range(1, 4)):\n  time.sleep(0.5)") == 0
