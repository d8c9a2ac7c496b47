"""KsponSpeech of AI Hub: raw PCM beside text files in CP949, or the lists (``train.trn``) that came later in UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fl.core.errors import CorpusError
from fl.data.importers.duals import read_dual, remove_marks
from fl.data.importers.places import AudioIndex, roots_of
from fl.data.importers.records import Finding, Format, LeftOut, Options, Problem, RawPcm, Record, split_name
from fl.data.importers.texts import numbered_lines

BETWEEN = " :: "


def read(source: Path, options: Options) -> Iterator[Finding]:
    """Records of the ``.trn`` lists below ``source``, else of its ``.txt`` files. No file says who spoke."""
    lists = [path for path in sorted(source.rglob("*.trn")) if options.wants(path.stem)]
    index = AudioIndex(roots_of(source, options.audio))
    if lists:
        for path in lists:
            for number, line in numbered_lines(path, options.encoding):
                where = f"{path}:{number}"
                name, between, text = line.partition(BETWEEN)
                if not between:
                    yield Problem(
                        where, "broken line", f"{where}: a line is the path of the audio, ' :: ' and the text"
                    )
                    continue
                stem = Path(name.strip()).stem
                yield _record(where, stem, text, split_name(path.stem), index, options)
        return
    texts = sorted(source.rglob("*.txt"))
    if not texts:
        raise CorpusError(f"{source}: holds no .trn lists and no .txt files; give the folder that was unpacked")
    for path in texts:
        lines = list(numbered_lines(path, options.encoding))
        yield _record(f"{path}:1", path.stem, lines[0][1] if lines else "", None, index, options)


def _record(where: str, stem: str, text: str, split: str | None, index: AudioIndex, options: Options) -> Finding:
    spoken = read_dual(text, where, options.order, options.transcript)
    text = spoken.text
    if options.events == "remove":
        text, useless = remove_marks(text)
        if useless:
            return LeftOut(where, useless)
    path = index.find(stem, where)
    if path is None:
        return Problem(
            where, "missing audio", f"{where}: no audio file is called {stem!r}; give its folder with --audio DIR"
        )
    audio = path if path.suffix.lower() not in (".pcm", ".raw") else RawPcm(path)
    # a folder holds a thousand utterances that were recorded after each other
    return Record(
        where, stem, audio, text, session=path.parent.name, split=split, lang="ko", loanwords=spoken.loanwords
    )


FORMAT = Format(
    name="kspon",
    title="KsponSpeech of AI Hub, Korean, 969 h",
    layout="*.trn lists, or a .txt beside every .pcm (CP949: --encoding cp949)",
    speakers="not shipped: pseudo-devices by folder (session)",
    licence="AI Hub terms: application only, not to be passed on",
    get="apply at aihub.or.kr (KsponSpeech); unpack scripts and audio",
    read=read,
)
