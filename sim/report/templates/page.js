// Filters the sample cards by text, person and kind. The state lives in the address after '#', so a view can be sent on.
"use strict";
(() => {
  const form = document.getElementById("filters");
  const cards = [...document.querySelectorAll("#samples .card")];
  if (!form || !cards.length) return;
  const shown = document.getElementById("shown");
  const nothing = document.getElementById("no-match");
  const names = ["text", "device", "kind"];
  const plain = (text) => text.normalize("NFC").toLowerCase();
  const words = new Map(cards.map((card) => [card, plain(card.textContent)]));

  const apply = () => {
    const text = plain(form.text.value.trim());
    let count = 0;
    for (const card of cards) {
      const fits = (!text || words.get(card).includes(text))
        && (!form.device.value || card.dataset.device === form.device.value)
        && (!form.kind.value || card.dataset.kind === form.kind.value);
      card.hidden = !fits;
      count += fits ? 1 : 0;
    }
    shown.textContent = `${count} of ${cards.length}`;
    nothing.hidden = count > 0;
  };
  const read = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    if (!names.some((name) => state.has(name))) return;
    for (const name of names) form[name].value = state.get(name) ?? "";
  };
  const write = () => {
    const state = new URLSearchParams(names.filter((name) => form[name].value).map((name) => [name, form[name].value]));
    history.replaceState(null, "", state.size ? `#${state}` : "#samples");
  };

  form.hidden = false;
  form.addEventListener("input", () => { apply(); write(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => { read(); apply(); });
  document.addEventListener("play", (event) => {  // one voice at a time
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
  }, true);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
  read();
  apply();
})();
