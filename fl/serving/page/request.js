// Requests: one transcript from the server, whole or word by word, and what went wrong in words.
// `kind` is the last part of a problem document's type, such as "adapter-mismatch".
class Problem extends Error {
  constructor(title, detail = "", { status = null, kind = "" } = {}) {
    super(detail ? `${title}: ${detail}` : title);
    Object.assign(this, { title, detail, status, kind });
  }
}

// What to do in this page, where the server's remedy speaks of requests.
const REMEDIES = {
  unauthorized: "Enter a token of this server.",
  "adapter-mismatch": "Choose the adapter that was trained for this base.",
  "too-large": "Choose something smaller.",
};

const asText = (value) => (value === undefined || typeof value === "string" ? value ?? "" : JSON.stringify(value));

// A problem document of RFC 9457, or what little there is without one.
const problemFrom = (body, status, wait = null) => {
  const kind = asText(body?.type).split("/").pop();
  const again = wait && /^\d+$/.test(wait) ? `Try again in ${wait} s.` : "";
  const detail = asText(body?.detail);
  const parts = [/[.!?]$/.test(detail) || !detail ? detail : `${detail}.`, again || (REMEDIES[kind] ?? asText(body?.remedy))];
  return new Problem(body?.title ?? body?.message ?? `The server answered ${status}`, parts.filter(Boolean).join(" "), { status, kind });
};

const problemOf = async (response) =>
  problemFrom(await response.json().catch(() => null), response.status, response.headers.get("Retry-After"));

const headersOf = (token) => {
  try {
    return new Headers(token ? { Authorization: `Bearer ${token}` } : {});
  } catch {
    throw new Problem("Not a token", "It holds characters that no token has. Paste it again.", { kind: "unauthorized" });
  }
};

const formOf = ({ clip, adapter, stream }) => {
  const form = new FormData();
  form.append("response_format", "verbose_json");
  if (stream) form.append("stream", "true");
  if (adapter) form.append("adapter", adapter.blob, adapter.name);
  form.append("file", clip.blob, clip.name);
  return form;
};

// Server-sent events as objects; an event may arrive in several chunks and a chunk may hold several.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest = (rest + (value ?? "")).replaceAll("\r\n", "\n");
    const parts = rest.split("\n\n");
    rest = done ? "" : parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
    if (done) return;
  }
}

// The transcript of a stream; `onText` gets the whole text so far.
const readStream = async (response, onText) => {
  let text = "";
  for await (const event of eventsOf(response.body)) {
    if (event.type === "transcript.text.delta") onText(text += event.delta);
    else if (event.type === "transcript.text.done") return event;
    else if (event.type === "error" || event.error) {
      const cause = event.problem ?? event.error ?? event;
      throw problemFrom(cause, cause.status ?? null);
    }
  }
  throw new Problem("Cut off", "The connection ended before the transcript did. Send it again.");
};

// One transcript: {text, words, stages, language, seconds, firstWords}. Times are in seconds, the last two measured here.
const transcribe = async ({ clip, adapter = null, token = "", stream = false, signal, onText = () => {} }) => {
  const headers = headersOf(token);
  const started = performance.now();
  const since = () => (performance.now() - started) / 1000;
  let firstWords = null;
  let answer;
  try {
    const address = new URL("v1/audio/transcriptions", document.baseURI);
    const response = await fetch(address, { method: "POST", headers, body: formOf({ clip, adapter, stream }), signal });
    if (!response.ok) throw await problemOf(response);
    const streams = (response.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
    answer = streams
      ? await readStream(response, (text) => { firstWords ??= since(); onText(text); })
      : await response.json();
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    if (error instanceof SyntaxError) throw new Problem("Not understood", "The server's answer is not JSON.");
    throw new Problem("Not connected", "The server cannot be reached. Is it running, and are you online?");
  }
  if (typeof answer?.text !== "string") throw new Problem("Not understood", "The server's answer holds no text.");
  return { ...answer, seconds: since(), firstWords };
};
