// The fields of the page and what is wrong with them: an error stands beside what caused it.
const $ = (id) => document.getElementById(id);
const PLACES = ["audio", "adapter", "token", "ask"];
const FIELDS = { audio: "audio-file", adapter: "adapter-file", token: "token" };

const showProblem = (place, problem) => {
  const line = $(`${place}-error`);
  line.replaceChildren(make("strong", { textContent: problem.title }), problem.detail ? ` ${problem.detail}` : "");
  line.hidden = false;
  if (FIELDS[place]) $(FIELDS[place]).setAttribute("aria-invalid", "true");
};

const clearProblem = (place) => {
  $(`${place}-error`).hidden = true;
  $(`${place}-error`).replaceChildren();
  if (FIELDS[place]) $(FIELDS[place]).removeAttribute("aria-invalid");
};

const say = (text) => { $("status").textContent = text; };

const guard = async (place, action) => {
  clearProblem(place);
  try {
    return await action();
  } catch (error) {
    showProblem(place, error instanceof Problem ? error : new Problem("Failed", String(error.message || error)));
    return null;
  }
};
