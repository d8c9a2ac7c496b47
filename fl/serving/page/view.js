// What is shown of sounds, transcripts and times. Text goes in as text: nothing here makes HTML of a string.
const BARS = 290; // of the trace; its viewBox is as wide
const STAGES = { // the server's names; two with one title are added up
  upload: "Upload", receive: "Upload", adapter: "Checks", audio: "Checks",
  queue: "Queue", features: "Features", encode: "Encode", decode: "Decode",
};
const REST = "Network and rest";
const TIMES_NOTE = "The server measures its own stages, this browser the total; both requests run at the same time. "
  + "Parts of a long recording are transcribed side by side, so that their stages can add up to more than the total.";
const NAMES = { ko: "Korean", en: "English" };

const make = (tag, properties = {}, ...children) => {
  const { dataset = {}, role, label, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children.filter((child) => child !== null));
  return element;
};

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const seconds = (value) => (value < 0.9995 ? `${Math.round(1000 * value)}\u202fms` : `${value.toFixed(value < 9.95 ? 2 : 1)}\u202fs`);
const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)}\u202fKB` : `${(bytes / 1e6).toFixed(1)}\u202fMB`);
const kindOf = (language) => (language in NAMES ? language : "other");

const languageName = (code) => {
  if (!code) return "no language";
  try {
    return NAMES[code] ?? new Intl.DisplayNames("en", { type: "language" }).of(code);
  } catch {
    return code;
  }
};

// Peaks as vertical strokes over an axis of `axisSeconds`; a sound may fill only its beginning.
const drawTrace = (path, peaks) => {
  path.setAttribute("d", peaks.map((peak, i) => {
    const half = Math.max(0.6, 30 * Math.min(1, peak) ** 0.6); // quiet speech stays visible
    return `M${i + 0.5} ${(32 - half).toFixed(1)}V${(32 + half).toFixed(1)}`;
  }).join(""));
};

const peaksOf = (samples, axisSeconds) => {
  const step = (axisSeconds * limits.rate) / BARS;
  const count = Math.min(BARS, Math.ceil(samples.length / step));
  return Array.from({ length: count }, (_, i) => peakOf(samples.subarray(Math.floor(i * step), Math.floor((i + 1) * step))));
};

const wordView = (word, differs) => make("span", { className: differs ? "token differs" : "token" },
  ...word.pieces.map(({ text, language }) => make("span", {
    className: `word ${kindOf(language)}`,
    textContent: text,
    title: languageName(language),
    lang: language ?? "",
    dataset: { language: language ?? "" },
  })));

const ribbonView = (runs) => {
  const ribbon = make("p", { className: "ribbon" });
  ribbon.setAttribute("aria-hidden", "true");
  for (const { language, letters } of runs) {
    const part = make("i", { className: kindOf(language) });
    part.style.flexGrow = letters;
    ribbon.append(part);
  }
  return ribbon;
};

const countsText = (words, runs) => {
  const counts = new Map();
  for (const word of words) counts.set(word.pieces[0].language, (counts.get(word.pieces[0].language) ?? 0) + 1);
  const parts = [...counts].map(([language, count]) => plural(count, language ? `${languageName(language)} word` : "other word"));
  const switches = switchesOf(runs);
  return [...parts, `${switches} switch${switches === 1 ? "" : "es"}`].join(" · ");
};

// One of the two columns. `body` is what stands under its heading.
const showHeard = (article, { heading, sub, busy = false }, ...body) => {
  article.setAttribute("aria-busy", String(busy));
  const head = make("h3", { id: `${article.id}-h` }, heading);
  article.replaceChildren(make("header", {}, head, make("p", { className: "sub", textContent: sub })), ...body);
};

const transcriptView = (transcript, words, differing) => {
  if (!words.length) return [make("p", { className: "said empty", textContent: "No words were recognized." })];
  const runs = runsOf(words);
  const said = make("p", { className: "said" });
  words.forEach((word, i) => said.append(...(i ? [" "] : []), wordView(word, differing.has(i))));
  return [ribbonView(runs), said, make("p", { className: "note counts", textContent: countsText(words, runs) })];
};

const failureView = (problem) => [
  make("p", { className: "said empty", textContent: "No transcript." }),
  make("p", { className: "error", textContent: problem.title }),
];

// The stretches that stand for one another, as a table: each line is one place where the two disagree.
const differencesView = (stretches) => {
  const cell = (words) => make("td", {}, words.length ? make("span", { lang: "ko", textContent: words.join(" ") })
    : make("span", { className: "empty", textContent: "nothing" }));
  const rows = stretches.map(({ first, second }) => make("tr", {}, cell(first), cell(second)));
  const head = make("tr", {}, ...["Base", "Personalized"].map((text) => make("th", { scope: "col", textContent: text })));
  return [
    make("h2", { textContent: rows.length ? `${plural(rows.length, "difference")}` : "No difference" }),
    rows.length
      ? make("table", { className: "changes" }, make("thead", {}, head), make("tbody", {}, ...rows))
      : make("p", { className: "note", textContent: "Both transcripts have the same words." }),
  ];
};

// Seconds by stage, in order, and what they leave of the time that the browser measured.
const timesOf = (transcript) => {
  const order = Object.keys(STAGES);
  const stages = Object.entries(transcript.stages ?? {}).filter(([name, value]) => name !== "total" && Number.isFinite(value));
  stages.sort(([a], [b]) => (order.indexOf(a) + 1 || 99) - (order.indexOf(b) + 1 || 99));
  const times = new Map();
  for (const [name, value] of stages) times.set(STAGES[name] ?? name, (times.get(STAGES[name] ?? name) ?? 0) + value);
  return times.set(REST, Math.max(0, transcript.seconds - total(times)));
};

const total = (times) => [...times.values()].reduce((sum, value) => sum + value, 0);

const stageClass = (title) => {
  const place = [...new Set(Object.values(STAGES))].indexOf(title);
  return `stage-${title === REST ? "rest" : place < 0 ? "more" : place}`;
};

// Where the time went: a bar for each transcript, in parts, and the numbers. `heard` is [[name, transcript], ...].
const stagesView = (heard) => {
  const columns = heard.map(([, transcript]) => timesOf(transcript));
  const names = [...new Set([...Object.values(STAGES), ...columns.flatMap((times) => [...times.keys()].filter((name) => name !== REST)), REST])]
    .filter((name) => columns.some((times) => times.has(name)));
  const longest = Math.max(...columns.map(total));
  const bar = ([name, transcript], k) => {
    const track = make("span", { className: "track" });
    names.forEach((stage) => {
      const part = make("i", { className: `${stageClass(stage)}`, title: stage });
      part.style.width = `${(100 * (columns[k].get(stage) ?? 0)) / longest}%`;
      track.append(part);
    });
    return make("li", {}, make("span", { className: "name", textContent: name }), track,
      make("span", { className: "number", textContent: seconds(transcript.seconds) }));
  };
  const row = (title, values, swatch = null) => make("tr", {},
    make("th", { scope: "row" }, swatch, title),
    ...values.map((value) => make("td", { textContent: value === undefined || value === null ? "–" : seconds(value) })));
  const stageRow = (stage) => row(stage, columns.map((times) => times.get(stage)), make("i", { className: `swatch ${stageClass(stage)}` }));
  const whole = row("Total", heard.map(([, transcript]) => transcript.seconds));
  whole.className = "total";
  const extra = heard.some(([, { firstWords }]) => firstWords !== null)
    ? [row("First words after", heard.map(([, { firstWords }]) => firstWords))] : [];
  const head = ["Stage", ...heard.map(([name]) => name)].map((text) => make("th", { scope: "col", textContent: text }));
  const bars = make("ul", { className: "timeline" }, ...heard.map(bar));
  bars.setAttribute("aria-hidden", "true"); // the table says the same
  return [
    make("h2", { textContent: "Where the time went" }),
    bars,
    make("table", { className: "times" }, make("thead", {}, make("tr", {}, ...head)),
      make("tbody", {}, ...names.map(stageRow), whole, ...extra)),
    make("p", { className: "note", textContent: TIMES_NOTE }),
  ];
};
