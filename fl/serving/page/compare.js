// Words: which language each piece of a transcript is in, and where two transcripts differ.
const LETTER = /[\p{L}\p{M}]/u;
const LARGEST_TABLE = 2e7; // cells of two bytes
const scriptOf = (text) => (/\p{Script=Hangul}/u.test(text) ? "ko" : /\p{Script=Latin}/u.test(text) ? "en" : null);

// A transcript as words: [{text, pieces: [{text, language}]}]. The server's stretches of one language, or its words, are
// found in the text one after the other; a word may hold several pieces, such as an English stem and its Korean particle.
const wordsOf = (transcript) => {
  const text = transcript.text.normalize("NFC");
  const languages = new Array(text.length).fill(undefined);
  let from = 0;
  for (const named of transcript.spans ?? transcript.words ?? []) {
    const wanted = String(named.text ?? named.word ?? "").normalize("NFC").trim();
    const at = text.indexOf(wanted, from);
    if (!wanted || at < 0) continue;
    languages.fill(named.language ?? null, at, at + wanted.length);
    from = at + wanted.length;
  }
  return [...text.matchAll(/\S+/gu)].map((match) => ({ text: match[0], pieces: piecesOf(match[0], match.index, languages) }));
};

// One word cut where the language changes. Digits and signs stay with the letters before them, at the start after them.
const piecesOf = (word, start, languages) => {
  const pieces = [];
  let at = start;
  for (const letter of word) {
    const named = languages[at];
    const language = named === undefined ? scriptOf(letter) : named;
    at += letter.length;
    const last = pieces.at(-1);
    if (last && (last.language === language || !LETTER.test(letter))) last.text += letter;
    else if (last && !LETTER.test(last.text)) Object.assign(last, { text: last.text + letter, language });
    else pieces.push({ text: letter, language });
  }
  return pieces;
};

// Words that differ only in case and punctuation are the same.
const keyOf = (word) => word.text.toLowerCase().replace(/[\p{P}\p{S}]/gu, "") || word.text;

// Longest common subsequence of words: which words of each are not in it, and the stretches that stand for one another.
// `null` for texts so long that the table would not fit: half an hour of speech against half an hour.
const differencesOf = (first, second) => {
  if (first.length * second.length > LARGEST_TABLE) return null;
  const a = first.map(keyOf);
  const b = second.map(keyOf);
  const width = b.length + 1;
  const common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      common[i * width + j] = a[i] === b[j]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const found = { first: new Set(), second: new Set(), stretches: [] };
  let [i, j] = [0, 0];
  let stretch = null;
  const take = () => (stretch ??= found.stretches[found.stretches.push({ first: [], second: [] }) - 1]);
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      stretch = null; i += 1; j += 1;
    } else if (j >= b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      take().first.push(first[i].text); found.first.add(i); i += 1;
    } else {
      take().second.push(second[j].text); found.second.add(j); j += 1;
    }
  }
  return found;
};

// Runs of one language through a transcript, with their letters: what the ribbon shows.
const runsOf = (words) => {
  const runs = [];
  for (const { language, text } of words.flatMap((word) => word.pieces)) {
    const letters = [...text].filter((letter) => /[\p{L}\p{N}]/u.test(letter)).length;
    if (!letters) continue;
    if (runs.at(-1)?.language === language) runs.at(-1).letters += letters;
    else runs.push({ language, letters });
  }
  return runs;
};

// How often the language changes; digits are in none.
const switchesOf = (runs) => {
  const languages = runs.map(({ language }) => language).filter(Boolean);
  return languages.filter((language, i) => i && language !== languages[i - 1]).length;
};
