// Speech: the sound that was recorded or chosen, its trace, and the level while it is being recorded.
const LEVEL_FLOOR = -60; // dB, the left end of the meter

let clip = null;      // {name, samples, seconds, blob}
let recording = null; // the function that stops it
let asking = false;   // until the person has answered the browser's question

const label = (button, text) => { button.querySelector("span").textContent = text; };

const showAxis = (axisSeconds) => { $("axis-end").textContent = `${+axisSeconds.toFixed(1)}\u202fs`; };

const showClip = (next) => {
  clip = next;
  const player = $("player");
  if (player.src) URL.revokeObjectURL(player.src);
  player.hidden = !clip;
  if (!clip) return player.removeAttribute("src");
  player.src = URL.createObjectURL(clip.blob);
  const axis = clip.seconds || limits.longest;
  showAxis(axis);
  drawTrace($("bars"), clip.samples ? peaksOf(clip.samples, axis) : []);
  const length = clip.samples ? `${clip.seconds.toFixed(1)} s of sound` : "this browser cannot decode it: sent as it is";
  $("trace").setAttribute("aria-label", `${clip.name}, ${length}`);
  $("audio-facts").textContent = `${clip.name} · ${length} · ${size(clip.blob.size)}`;
  const fault = faultOf(clip);
  if (fault) showProblem("audio", fault);
  say(fault ? "" : "Ready. Nothing is sent before you press Transcribe.");
};

const showLevel = (samples) => {
  const decibels = Math.max(LEVEL_FLOOR, Math.min(0, 20 * Math.log10(peakOf(samples) || 1e-9)));
  $("meter").setAttribute("aria-valuenow", decibels.toFixed(0));
  $("meter").setAttribute("aria-valuetext", `${decibels.toFixed(0)} dB`);
  $("meter").classList.toggle("clipped", decibels > -0.5);
  $("meter").firstElementChild.style.width = `${100 * (1 - decibels / LEVEL_FLOOR)}%`;
};

// Draws at the pace of the screen what the audio thread hands over far more often.
const liveTrace = () => {
  const peaks = [];
  let pending = [];
  let time = 0;
  const paint = () => {
    if (!recording) return;
    if (pending.length) showLevel(join(pending));
    pending = [];
    drawTrace($("bars"), peaks);
    $("left").textContent = `${Math.max(0, limits.longest - time).toFixed(1)}\u202fs left`;
    requestAnimationFrame(paint);
  };
  const heard = (samples, now) => {
    const bar = Math.min(BARS - 1, Math.floor((now / limits.longest) * BARS));
    for (let i = peaks.length; i <= bar; i += 1) peaks.push(0);
    peaks[bar] = Math.max(peaks[bar], peakOf(samples));
    pending.push(samples);
    time = now;
  };
  return { heard, paint };
};

const showRecording = (on) => {
  $("record").classList.toggle("on", on);
  label($("record"), on ? "Stop" : "Record");
  $("meter").hidden = !on;
  $("left").textContent = on ? `${limits.longest.toFixed(1)}\u202fs left` : `up to ${limits.longest}\u202fs`;
  $("transcribe").disabled = on;
};

const stop = async () => {
  const finish = recording;
  if (!finish) return;
  recording = null;
  showRecording(false);
  const made = await guard("audio", finish);
  if (made) showClip(made);
};

const record = async () => {
  if (recording) return stop();
  if (asking) return;
  asking = true; // the button stays enabled: a disabled one would lose the focus
  const live = liveTrace();
  const started = await guard("audio", () => startRecording(live.heard, stop));
  asking = false;
  if (!started) return;
  showClip(null);
  recording = started;
  $("audio-facts").textContent = "";
  showAxis(limits.longest);
  showRecording(true);
  say("Recording.");
  live.paint();
};

const takeAudio = async (file) => {
  if (recording) await stop();
  const read = await guard("audio", () => readClip(file));
  if (read) showClip(read);
};
