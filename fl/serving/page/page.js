// The page: what is chosen, what a press does, and where the answers go.
const LARGEST_ADAPTER = 64 * 2 ** 20; // bytes

let adapter = null; // {name, blob}
let sending = null; // AbortController of the requests under way

// Adapter

const showAdapter = (next) => {
  adapter = next;
  $("adapter-remove").hidden = !adapter;
  $("adapter-facts").textContent = adapter ? `${adapter.name} · ${size(adapter.blob.size)}` : "Without one there is only the base transcript.";
};

const takeAdapter = (file) => guard("adapter", async () => {
  if (!file.size) throw new Problem("Empty file", `${file.name} holds nothing. Export the adapter again.`);
  if (file.size > LARGEST_ADAPTER) throw new Problem("File too large", `${file.name} has ${size(file.size)}: no adapter is that large.`);
  showAdapter({ name: file.name, blob: new Blob([await file.arrayBuffer()]) }); // a copy: the file may change before it is sent
});

// Transcripts

// The field that an error belongs to: by its kind, else by which of the two requests it stopped. The adapter is at fault
// where the same sound passes without it.
const KIND_PLACES = {
  unauthorized: "token",
  "forbidden-origin": "ask",
  "unusable-audio": "audio",
  "audio-too-long": "audio",
  "audio-too-short": "audio",
  "unusable-adapter": "adapter",
  "adapter-mismatch": "adapter",
};

const placeOf = (problem, personal, base) => {
  if (problem.kind in KIND_PLACES) return KIND_PLACES[problem.kind];
  if (problem.status === 401 || problem.status === 403) return "token";
  if (!problem.status || problem.status >= 500 || [408, 409, 425, 429].includes(problem.status)) return "ask";
  return personal && base?.message !== problem.message ? "adapter" : "audio";
};

const COLUMNS = {
  base: { heading: "Base", sub: "the model alone" },
  personal: { heading: "Personalized", sub: "with your adapter" },
};

const waiting = (text = "") => make("p", { className: text ? "said partial" : "said empty", lang: text ? "ko" : "en", textContent: text || "Transcribing …" });

const hideAnswers = (text) => {
  $("results").hidden = true;
  $("results").querySelectorAll("[aria-busy]").forEach((article) => article.setAttribute("aria-busy", "false"));
  say(text);
};

const showAnswers = ({ base, personal }) => {
  if ([base, personal].every((answer) => typeof answer?.text !== "string")) return hideAnswers(""); // the error stands beside its cause
  const answers = Object.entries({ base, personal });
  const words = Object.fromEntries(answers.map(([id, answer]) => [id, typeof answer?.text === "string" ? wordsOf(answer) : null]));
  const both = words.base && words.personal ? differencesOf(words.base, words.personal) : null;
  const differing = { base: both?.first ?? new Set(), personal: both?.second ?? new Set() };
  for (const [id, answer] of answers) {
    const body = !answer ? [make("p", { className: "said empty", textContent: "Choose your adapter to compare." })]
      : words[id] ? transcriptView(answer, words[id], differing[id]) : failureView(answer);
    showHeard($(id), COLUMNS[id], ...body);
  }
  $("differences").replaceChildren(...(both ? differencesView(both.stretches) : []));
  $("differences").hidden = !both;
  const timed = answers.filter(([id]) => words[id]).map(([id, answer]) => [COLUMNS[id].heading, answer]);
  $("stages").replaceChildren(...(timed.length ? stagesView(timed) : []));
  $("stages").hidden = !timed.length;
  $("results").scrollIntoView({ block: "nearest" }); // on a telephone they lie below the form
  say(both ? `Transcribed; ${plural(both.stretches.length, "difference")}.` : timed.length ? "Transcribed." : "");
};

const showWaiting = () => {
  $("results").hidden = false;
  $("differences").hidden = true;
  $("stages").hidden = true;
  showHeard($("base"), { ...COLUMNS.base, busy: true }, waiting());
  showHeard($("personal"), { ...COLUMNS.personal, busy: Boolean(adapter) },
    adapter ? waiting() : make("p", { className: "said empty", textContent: "Choose your adapter to compare." }));
};

const send = async () => {
  sending = new AbortController();
  const { signal } = sending;
  $("transcribe").textContent = "Cancel";
  say("Sending …");
  showWaiting();
  const what = { clip, token: $("token").value.trim(), signal };
  const onText = (text) => showHeard($("personal"), { ...COLUMNS.personal, busy: true }, waiting(text));
  const caught = (request) => request.catch((error) => error);
  const [base, personal] = await Promise.all([
    caught(transcribe(what)),
    adapter ? caught(transcribe({ ...what, adapter, stream: true, onText })) : null,
  ]);
  sending = null;
  $("transcribe").textContent = "Transcribe";
  if (signal.aborted) return hideAnswers("Cancelled.");
  for (const problem of [base, personal]) {
    if (problem instanceof Error) showProblem(placeOf(problem, problem === personal, base), problem);
  }
  showAnswers({ base, personal });
};

const submit = () => {
  if (sending) return sending.abort();
  PLACES.forEach(clearProblem);
  const fault = clip ? faultOf(clip) : new Problem("No speech yet", "Record a sentence or choose a file first.");
  if (fault) return showProblem("audio", fault);
  return send();
};

// Wiring

const drop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  for (const file of event.dataTransfer?.files ?? []) (/\.safetensors$/i.test(file.name) ? takeAdapter : takeAudio)(file);
};

// An emptied input reports the same file again when it is chosen again.
const onFile = (id, take) => $(id).addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) take(file);
  target.value = "";
});

$("record").addEventListener("click", record);
onFile("audio-file", takeAudio);
onFile("adapter-file", takeAdapter);
$("adapter-remove").addEventListener("click", () => { clearProblem("adapter"); showAdapter(null); $("adapter-file").focus(); });
$("token").addEventListener("input", () => clearProblem("token"));
$("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", drop);
showRecording(false);
showAxis(limits.longest);
