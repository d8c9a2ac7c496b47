// Sound: from the microphone or a file to what is sent, a WAV file of 16 kHz and one channel.
const limits = {
  get rate() { return Number(document.body.dataset.sampleRate); },
  get longest() { return Number(document.body.dataset.maxSeconds); },
  get shortest() { return Number(document.body.dataset.minSeconds); },
  get silence() { return Number(document.body.dataset.silencePeak); },
};
const LARGEST_FILE = 32 * 2 ** 20; // bytes; decoded it is many times that

// Runs in the audio thread and hands on what it hears, in blocks of 128 samples.
const TAP = `registerProcessor("tap", class extends AudioWorkletProcessor {
  process([[samples]]) { if (samples) this.port.postMessage(samples.slice()); return true; }
});`;

const peakOf = (samples) => {
  let peak = 0;
  for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
  return peak;
};

const join = (blocks) => {
  const whole = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) { whole.set(block, at); at += block.length; }
  return whole;
};

// Samples in [-1, 1] as a WAV file of 16-bit integers, little-endian: a header of 44 bytes, then the samples.
const toWav = (samples, rate) => {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVE");
  text(12, "fmt "); view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); view.setUint16(22, 1, true); // integers, one channel
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true));
  return view.buffer;
};

// Any file that the browser knows, as mono samples at 16 kHz. Decoding resamples with a filter; playing into a context
// of another rate does not, and folds what is above 8 kHz back into the speech.
const decode = async (bytes) => {
  const sound = await new OfflineAudioContext(1, 1, limits.rate).decodeAudioData(bytes);
  const mono = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel += 1) {
    sound.getChannelData(channel).forEach((sample, i) => { mono[i] += sample / sound.numberOfChannels; });
  }
  return mono;
};

const clipOf = (samples, name) => ({
  name,
  samples,
  seconds: samples.length / limits.rate,
  blob: new Blob([toWav(samples, limits.rate)], { type: "audio/wav" }),
});

// A file as a clip. What this browser cannot decode goes to the server as it is: it reads formats that no browser does.
const readClip = async (file) => {
  if (file.size > LARGEST_FILE) {
    throw new Problem("File too large", `${file.name} has ${size(file.size)}; this page takes ${size(LARGEST_FILE)}.`);
  }
  if (!file.size) throw new Problem("Empty file", `${file.name} holds nothing. Choose another one.`);
  const bytes = await file.arrayBuffer();
  const whole = new Blob([bytes], { type: file.type });
  try {
    return clipOf(await decode(bytes), `${file.name.replace(/\.[^.]*$/, "")}.wav`);
  } catch {
    return { name: file.name, samples: null, seconds: null, blob: whole };
  }
};

// What is wrong with a clip before it is sent, if anything.
const faultOf = (clip) => {
  if (!clip.samples) return null;
  if (clip.seconds < limits.shortest) {
    return new Problem("Too short", `${seconds(clip.seconds)} of sound; at least ${seconds(limits.shortest)} are needed.`);
  }
  if (peakOf(clip.samples) < limits.silence) {
    return new Problem("Only silence", "No sound above −60 dB. Is the microphone muted?");
  }
  return null;
};

const MICROPHONE_PROBLEMS = {
  NotAllowedError: ["Microphone not allowed", "Allow it for this page in the browser's site settings, or choose a file."],
  NotFoundError: ["No microphone", "The browser finds none. Connect one, or choose a file."],
  NotReadableError: ["Microphone in use", "Another program holds the microphone. Close it, or choose a file."],
};

const openMicrophone = async () => {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem("No microphone here", "A browser lends it only to pages that come by https or from this machine.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true },
    });
  } catch (error) {
    throw new Problem(...(MICROPHONE_PROBLEMS[error.name] ?? ["Microphone failed", String(error.message || error.name)]));
  }
};

// Records until `stop()` or the limit. `heard(samples, seconds)` gets each block and the time so far; `ended()` is
// called at the limit and when the microphone goes away. `stop()` gives the clip.
const startRecording = async (heard, ended) => {
  const stream = await openMicrophone();
  const release = () => stream.getTracks().forEach((track) => track.stop());
  const context = new AudioContext();
  const address = URL.createObjectURL(new Blob([TAP], { type: "text/javascript" }));
  try {
    await context.audioWorklet.addModule(address);
    await context.resume();
  } catch (error) {
    release();
    await context.close();
    throw new Problem("Recording failed", String(error.message || error.name));
  } finally {
    URL.revokeObjectURL(address);
  }
  const tap = new AudioWorkletNode(context, "tap", { channelCount: 1, channelCountMode: "explicit" });
  const most = () => Math.round(limits.longest * context.sampleRate);
  const blocks = [];
  let count = 0;
  tap.port.onmessage = ({ data }) => {
    blocks.push(data);
    count += data.length;
    heard(data, Math.min(count, most()) / context.sampleRate);
    if (count >= most()) ended();
  };
  stream.getTracks().forEach((track) => { track.onended = ended; });
  context.createMediaStreamSource(stream).connect(tap).connect(context.destination); // it plays nothing: it is pulled

  return async () => {
    tap.port.onmessage = null;
    release();
    await context.close();
    const samples = await decode(toWav(join(blocks).subarray(0, most()), context.sampleRate));
    return clipOf(samples.subarray(0, Math.round(limits.longest * limits.rate)), "recording.wav");
  };
};
