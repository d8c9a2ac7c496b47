"""Pictures of the report and of the server's web page, light and dark, in a real browser: docs/pictures/*.webp.

    python -m benchmarks.pictures                   # of a run of whisper-base that this makes: 8 minutes on 2 cores
    python -m benchmarks.pictures --run runs/demo   # of a finished one

The run is deterministic on one kind of machine, and is made once. The web page transcribes the first sentence of its report, with
the adapter of the person who said it.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.browser import CHROMIUM, MISSING, Browser, Tab
from clients.store import folder_name
from fl.core.errors import IdiolectError, RunError
from fl.core.files import PUBLIC, write_atomically
from fl.packed.folder import pack_folder
from fl.runs.files import is_finished, read_run
from fl.runs.schema import DEVICES, REPORT_NAME
from fl.settings.config import make_config
from fl.speech.audio import load_audio, save_audio
from fl.tasks.table import TASKS
from sim.backends.run import run_simulation
from sim.cli.app import progress_bars
from sim.report.page import write_report
from sim.report.samples import Sample, choose, spotlight

PICTURES, RUN = Path("docs/pictures"), Path("runs/pictures")
SETTINGS: dict[str, object] = {"rounds": 8, "local-steps": 5, "evaluate-every": 4, "seed": 1}  # the rest as in the demo
MAX_BYTES = 150_000
QUALITIES = range(90, 30, -10)
START_SECONDS, TRANSCRIBE_MS = 300, 120_000


def require_browser() -> None:
    """Raises :class:`RunError` without a browser, and without letters for Korean, before anything is computed."""
    if CHROMIUM is None:
        raise RunError(MISSING)
    fonts = shutil.which("fc-list")
    if fonts and not subprocess.run([fonts, ":lang=ko"], capture_output=True, check=True).stdout.strip():
        raise RunError("no font has Korean letters, pictures would show boxes: apt-get install fonts-nanum")


def made_run(folder: Path) -> Path:
    """The folder of a finished run with its report; the run of :data:`SETTINGS` where there is none yet."""
    if not is_finished(folder):
        config = make_config({**SETTINGS, "output": str(folder)})
        with progress_bars() as show:
            TASKS[config.task].prepare(config, lambda done, total: show(config.task, done, total))
            run_simulation(config, progress=show)
    write_report([folder], folder)
    return folder


def first_sentence(run: Path) -> Sample:
    """The first sentence of the report that a participant said."""
    files = read_run(run)
    chosen = spotlight(choose(files.transcripts, files.task))
    for sample in chosen:
        if sample.row.audio and not sample.row.new_person:
            return sample
    raise RunError(
        f"{run}: no recording of a participant is in the report; take a run of speech whose recordings are still there"
    )


@contextlib.contextmanager
def served(base: str) -> Iterator[str]:
    """``idiolect serve`` on this machine: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sim.cli.app", "serve", "--base", base, "--no-auth", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(10 * START_SECONDS):
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"{address}/health", timeout=10).close()
                    break
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
                said.seek(0)
                raise RunError(f"the server ended: {said.read()[-500:]}")
            else:
                raise RunError(
                    f"the server did not answer for {START_SECONDS} s; try again when the machine is less busy"
                )
            yield address
        finally:
            process.terminate()
            process.wait(60)


def take(tab: Tab, path: Path, last: str) -> None:
    """Write the page down to the element ``last``, in the best quality that fits :data:`MAX_BYTES`."""
    for quality in QUALITIES:
        if len(picture := tab.picture(quality, last)) <= MAX_BYTES:
            write_atomically(path, picture, mode=PUBLIC)
            print(f"{path}  {len(picture) / 1000:.0f} KB")
            return
    raise RunError(f"{path}: more than {MAX_BYTES} bytes in every quality; make the window smaller")


def picture_report(browser: Browser, run: Path, target: Path) -> None:
    """The top of the report."""
    for scheme in ("light", "dark"):
        tab = Tab(browser, (run / REPORT_NAME).resolve().as_uri(), dark=scheme == "dark")
        take(tab, target / f"report-{scheme}.webp", ".cards.first")
        tab.close()


def picture_page(browser: Browser, run: Path, target: Path) -> None:
    """The web page after a press on Transcribe, with the recording and the adapter of one person."""
    row = first_sentence(run).row
    assert row.audio is not None
    adapter = run / DEVICES / "personalized" / folder_name(row.device) / "adapter"
    with tempfile.TemporaryDirectory() as folder, served(read_run(run).costs.base) as address:
        speech, packed = Path(folder) / "sentence.flac", Path(folder) / "adapter.safetensors"
        first = row.start or 0.0
        save_audio(speech, load_audio(row.audio, first, first + row.seconds_audio))
        packed.write_bytes(pack_folder(adapter))
        for scheme in ("light", "dark"):
            tab = Tab(browser, address, dark=scheme == "dark")
            tab.choose("audio-file", speech)
            tab.choose("adapter-file", packed)
            tab.wait("!document.getElementById('adapter-remove').hidden && !document.getElementById('player').hidden")
            tab.js("document.getElementById('transcribe').click()")
            tab.wait(
                "document.querySelector('#personal .word') && !document.querySelector('[aria-busy=true]')",
                TRANSCRIBE_MS,
            )
            tab.js("document.activeElement.blur(), scrollTo(0, 0)")
            take(tab, target / f"page-{scheme}.webp", ".pair")
            tab.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN, help="run folder; made where it is not finished")
    parser.add_argument("--write", type=Path, default=PICTURES, help="folder for the pictures")
    arguments = parser.parse_args()
    try:
        require_browser()
        run = made_run(arguments.run)
        with tempfile.TemporaryDirectory() as folder:
            browser = Browser(Path(folder))
            try:
                picture_report(browser, run, arguments.write)
                picture_page(browser, run, arguments.write)
            finally:
                browser.close()
    except IdiolectError as error:
        sys.exit(f"pictures: {error}")


if __name__ == "__main__":
    main()
