"""KsponSpeech of AI Hub: raw PCM beside text files in CP949, or the lists (``train.trn``) that came later in UTF-8."""

from collections.abc import Iterator
from pathlib import Path

from fl.core.errors import CorpusError
from fl.core.paths import files_below
from fl.data.importers.duals import spoken_text
from fl.data.importers.places import AudioFolders
from fl.data.importers.records import Finding, Importer, Options, Record, UnusableError, attempt, file_of, split_name
from fl.data.importers.texts import numbered_lines

BETWEEN = " :: "


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of the ``.trn`` lists below ``source``, else of its ``.txt`` files. No file says who spoke."""
    folders = AudioFolders(source, options)
    lists = [path for path in files_below(source, "*.trn") if options.wants(path.stem)]
    for path in lists:
        for number, line in numbered_lines(path, options.encoding):
            name, between, text = line.partition(BETWEEN)
            where = f"{path}:{number}"
            if between:
                yield attempt(_record, where, Path(name.strip()), text, split_name(path.stem), folders, options)
            else:
                yield UnusableError(where, "broken line", "a line is the path of the audio, ' :: ' and the text")
    if lists:
        return
    texts = list(files_below(source, "*.txt"))
    if not texts:
        raise CorpusError(f"{source}: holds no .trn lists and no .txt files; give the folder that was unpacked")
    for path in texts:
        text = " ".join(line for _, line in numbered_lines(path, options.encoding))
        yield attempt(_record, f"{path}:1", path, text, None, folders, options)


def _record(where: str, label: Path, text: str, split: str | None, folders: AudioFolders, options: Options) -> Record:
    spoken, loanwords = spoken_text(text, where, options)
    audio = folders.called(label.stem, where, label)
    session = file_of(audio).parent.name  # a folder holds a thousand utterances that were recorded after each other
    return Record(where, label.stem, audio, spoken, session=session, split=split, lang="ko", loanwords=loanwords)


IMPORTER = Importer(
    title="KsponSpeech of AI Hub, Korean, 969 h",
    layout="*.trn lists, or a .txt beside every .pcm (CP949: --encoding cp949)",
    speakers="not shipped: pseudo-devices by folder (session)",
    licence="AI Hub terms: application only, not to be passed on",
    get="apply at aihub.or.kr (KsponSpeech); unpack scripts and audio",
    read=read,
)
