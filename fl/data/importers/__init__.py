"""Corpora of others, read into a manifest. Another one is a file with a ``FORMAT`` and a line in :data:`FORMATS`."""

from fl.data.importers.corpora import aihub, ascend, hike, kspon, seame, zeroth
from fl.data.importers.formats import common_voice, huggingface, kaldi, manifest, table
from fl.data.importers.records import Format

FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        aihub.FORMAT,
        hike.FORMAT,
        ascend.FORMAT,
        seame.FORMAT,
        zeroth.FORMAT,
        common_voice.FORMAT,
        kspon.FORMAT,
        kaldi.FORMAT,
        huggingface.FORMAT,
        table.FORMAT,
        manifest.FORMAT,
    )
}
