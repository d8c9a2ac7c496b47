"""The table of importers, by the name on the command line."""

from fl.core.registry import Registry
from fl.data.importers.corpora import aihub, ascend, asterisk, hike, kspon, seame, zeroth
from fl.data.importers.formats import common_voice, huggingface, kaldi, manifest, table
from fl.data.importers.records import Importer

IMPORTERS: Registry[Importer] = Registry(
    "importer",
    {
        "aihub": aihub.IMPORTER,
        "hike": hike.IMPORTER,
        "ascend": ascend.IMPORTER,
        "seame": seame.IMPORTER,
        "zeroth": zeroth.IMPORTER,
        "asterisk": asterisk.IMPORTER,
        "common-voice": common_voice.IMPORTER,
        "kspon": kspon.IMPORTER,
        "kaldi": kaldi.IMPORTER,
        "huggingface": huggingface.IMPORTER,
        "table": table.IMPORTER,
        "manifest": manifest.IMPORTER,
    },
)
