// The sampler's controls and pictures. The work is done in Workers by runtime.js.
const STEPS = [1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50, 100, 200, 500, 1000];
const PAPER = [251, 250, 246];
const INK = [24, 27, 38];

const models = {};
function loadModel(base, name) {
  models[name] ??= new Promise((done, failed) => {
    const script = document.createElement("script"); // works from file://, where fetch does not
    script.src = `${base}models/${name}.js`;
    script.onload = () => done(globalThis.DiffusionModels[name]);
    script.onerror = () => {
      delete models[name];
      failed(new Error(`the weights ${script.src} are missing`));
    };
    document.head.append(script);
  });
  return models[name];
}

// Two Workers that share the pictures of a batch, or the page itself where there are no Workers.
class Crew {
  constructor() {
    this.id = 0;
    const text = `(${diffusionRuntime})("${KERNEL}").serve(self);`;
    this.ports = [];
    try {
      const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      const n = Math.max(1, Math.min(2, navigator.hardwareConcurrency ?? 1));
      for (let i = 0; i < n; i++) this.ports.push(new Worker(url));
      this.inWorkers = true;
    } catch {
      const { port1, port2 } = new MessageChannel();
      diffusionRuntime(KERNEL).serve(port1);
      this.ports = [port2];
      this.inWorkers = false;
    }
  }

  // Resolves to {about, wasm} once all are ready.
  load(file) {
    return Promise.all(
      this.ports.map(
        (port) =>
          new Promise((done, failed) => {
            port.onmessage = ({ data }) => {
              if (data.ready) done({ about: data.ready, wasm: data.wasm });
              else if (data.failed) failed(new Error(data.failed));
            };
            port.onerror = (event) => failed(new Error(event.message ?? "a Worker failed"));
            port.postMessage({ load: file });
          }),
      ),
    ).then(([first]) => first);
  }

  // Draw a batch. onStep({i, x, x0, t, noise, ms}) gets whole batches in order; resolves to the
  // samples, or to null when stopped.
  sample(options, size, onStep) {
    const id = ++this.id;
    const n = options.labels.length;
    const cuts = this.ports.map((_, w) => Math.round((w * n) / this.ports.length)).concat(n);
    const steps = [];
    const join = (parts) => {
      if (!parts[0]) return null;
      const whole = new Float32Array(n * size);
      parts.forEach((part, w) => whole.set(part, cuts[w] * size));
      return whole;
    };
    return Promise.all(
      this.ports.map(
        (port, w) =>
          new Promise((done, failed) => {
            port.onmessage = ({ data }) => {
              if (data.failed) return failed(new Error(data.failed));
              if (data.id !== id) return;
              if ("done" in data) return done(data.done);
              const parts = (steps[data.i] ??= []);
              parts[w] = data;
              if (parts.filter(Boolean).length < this.ports.length) return;
              onStep({
                ...data,
                x: join(parts.map((part) => part.x)),
                x0: join(parts.map((part) => part.x0)),
                ms: Math.max(...parts.map((part) => part.ms)),
              });
            };
            port.postMessage({ sample: { ...options, from: cuts[w], to: cuts[w + 1] }, id });
          }),
      ),
    ).then((parts) => (parts.includes(null) ? null : join(parts)));
  }

  stop() {
    for (const port of this.ports) port.postMessage({ stop: true });
  }

  end() {
    for (const port of this.ports) (port.terminate ?? port.close).call(port);
  }
}

// make("p", {className: "note"}, child, ...)
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const symbol = (letter, index) => make("i", {}, letter, make("sub", {}, index));

// A labelled slider whose position says show(value); get() is its value.
function slider(label, values, start, show = String) {
  const input = make("input", { type: "range", min: 0, max: values.length - 1, step: 1 });
  const output = make("span", { className: "dl-shown", "aria-hidden": "true" });
  const name = make("span", { className: "dl-name" }, ...[label].flat());
  const update = () => {
    const text = show(values[input.value]);
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.addEventListener("input", update);
  input.value = values.indexOf(start);
  update();
  const element = make("label", { className: "dl-control" }, name, output, input);
  return { element, input, update, get: () => values[input.value] };
}

function chooser(label, options, start) {
  const select = make("select");
  for (const [value, text] of options) select.append(make("option", { value }, text));
  select.value = start;
  const name = make("span", { className: "dl-name" }, label);
  return { element: make("label", { className: "dl-control" }, name, select), input: select };
}

function tick(label, checked) {
  const input = make("input", { type: "checkbox", checked });
  const name = make("span", {}, ...[label].flat());
  return { element: make("label", { className: "dl-tick" }, input, name), input };
}

// A row of small pictures with its name; draw(values) paints them, without values they stay blank.
function row(name, what, n, [channels, height, width]) {
  const tiles = make("div", { className: "dl-tiles", role: "img" });
  const canvases = Array.from({ length: n }, () => make("canvas", { width, height }));
  tiles.append(...canvases);
  const element = make("div", { className: "dl-row" },
    make("p", { className: "dl-row-name" }, name, ` ${what}`), tiles);
  const size = channels * height * width;
  function draw(values) {
    canvases.forEach((canvas, k) => {
      const context = canvas.getContext("2d");
      const picture = context.createImageData(width, height);
      for (let i = 0; i < width * height; i++) {
        for (let c = 0; c < 3; c++) {
          const from = k * size + (channels === 3 ? c * width * height : 0) + i;
          const v = values ? Math.min(1, Math.max(0, (values[from] + 1) / 2)) : 0;
          // One channel is ink on paper, three are colours.
          picture.data[4 * i + c] = channels === 3 ? 255 * v : PAPER[c] + v * (INK[c] - PAPER[c]);
        }
        picture.data[4 * i + 3] = 255;
      }
      context.putImageData(picture, 0, 0);
    });
  }
  draw();
  return { element, draw, describe: (text) => tiles.setAttribute("aria-label", text) };
}

// options: those of the directive, and for a live notebook `weights`, a safetensors ArrayBuffer.
async function sampler(element, options) {
  const note = make("p", { className: "dl-note", role: "status" });
  note.textContent = "Loading the model…";
  element.append(note); // below the picture that stands in for the sampler
  element.dataset.state = "loading";
  const crew = new Crew();
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let about, wasm;
  try {
    const file = options.weights ?? (await loadModel(options.base, options.model));
    ({ about, wasm } = await crew.load(file));
  } catch (error) {
    console.warn("The sampler could not start:", error);
    crew.end();
    element.dataset.state = "failed";
    note.textContent =
      "The live model could not be loaded, so this page shows a picture made with it earlier. " +
      "Reload the page to try again.";
    return;
  }

  const [channels, height, width] = about.image_shape;
  const size = channels * height * width;
  const each = about.classes === 10;
  const N = 10; // pictures
  const T = about.schedule.T ?? about.schedule.schedule?.T ?? 1000;

  // The controls.
  const withStart = (values, start) =>
    values.includes(start) ? values : [...values, start].sort((a, b) => a - b);
  const number = (name, otherwise) => (name in options ? Number(options[name]) : otherwise);
  const range = (n, by) => Array.from({ length: n + 1 }, (_, i) => Number((i * by).toFixed(3)));
  const startSteps = Math.min(T, number("steps", 20));
  const steps = slider("steps", withStart(STEPS.filter((n) => n <= T), startSteps), startSteps);
  const startScale = number("guidance", 2);
  const scale = slider(
    ["guidance scale ", make("i", {}, "w")], withStart(range(16, 0.5), startScale), startScale);
  const kind = chooser("sampler", [["ddim", "DDIM"], ["ddpm", "DDPM"]], options.sampler ?? "ddim");
  const startEta = number("eta", 0);
  const eta = slider(["fresh noise ", make("i", {}, "η")], withStart(range(10, 0.1), startEta),
    startEta, (value) => (kind.input.value === "ddpm" ? "1" : String(value)));
  const classes = Array.from({ length: about.classes ?? 0 }, (_, k) => [String(k), String(k)]);
  const choice = chooser("class",
    [...(each ? [["each", "one of each"]] : []), ...classes, ["none", "no class"]],
    options.class ?? (each ? "each" : about.classes ? "0" : "none"));
  const seedInput = make("input", {
    type: "number", min: 0, max: 4294967295, step: 1, value: number("seed", 0) });
  const nextSeed = make("button", { type: "button", className: "dl-small" }, "Next");
  nextSeed.setAttribute("aria-label", "Next seed");
  const seedField = make("span", { className: "dl-field" }, seedInput, nextSeed);
  const seedName = make("span", { className: "dl-name" }, "seed");
  const seed = make("div", { className: "dl-control" }, make("label", {}, seedName), seedField);
  seedInput.id = `dl-seed-${Math.random().toString(36).slice(2)}`;
  seed.querySelector("label").htmlFor = seedInput.id;
  const clip = tick(["keep ", estimate(), " between white and black"], options.clip !== "no");
  const timing = tick("show the time of each step", false);

  // The pictures, and the way back through the steps.
  const held = row(symbol("x", "t"), "what the sampler holds", N, about.image_shape);
  const guess = row(estimate(), "what the network makes of it", N, about.image_shape);
  const where = make("input", { type: "range", min: 0, max: 1, value: 0 });
  const whereText = make("span", { className: "dl-shown", "aria-hidden": "true" });
  const way = make("label", { className: "dl-way dl-control" },
    make("span", { className: "dl-name" }, "step"), whereText, where);
  const draw = make("button", { type: "button", className: "dl-primary" }, "Draw");
  const stop = make("button", { type: "button", disabled: true }, "Stop");
  const status = make("p", { className: "dl-status", role: "status" });
  const times = make("p", { className: "dl-times", hidden: true });

  function estimate() {
    return make("i", {}, make("span", { className: "dl-hat" }, "x"), make("sub", {}, "0"));
  }

  let frames = [];
  let running = null;
  let following = true;
  // After i steps: the picture held, and the estimate made from it, which comes with the next step.
  // (The last one is clean, and its own estimate.)
  function show(i) {
    const frame = frames[i];
    if (!frame) return;
    const estimates = i === frames.total ? frame.x0 : frames[i + 1]?.x0;
    held.draw(frame.x);
    guess.draw(estimates);
    where.max = frames.total;
    where.value = i;
    const level = `t = ${Number(frame.t.toPrecision(4))}`;
    whereText.textContent = `${i} of ${frames.total}, ${level}`;
    where.setAttribute("aria-valuetext", `${i} of ${frames.total}, ${level}`);
    const what = `${N} pictures of ${frames.text}, after step ${i} of ${frames.total}`;
    const state = frame.t === 0 ? "finished" : i === 0 ? "pure noise" : "partly noisy";
    held.describe(`${what}: ${state}`);
    guess.describe(estimates ? `${what}: the estimates of the clean pictures` : "No estimate yet");
  }

  const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
  function showTimes() {
    times.hidden = !timing.input.checked;
    const taken = frames.slice(1).map((frame) => frame.ms);
    if (times.hidden || !taken.length) return;
    const mean = taken.reduce((a, b) => a + b) / taken.length;
    const one = frames[where.value].ms;
    const calls = frames.calls;
    times.textContent =
      `${mean.toFixed(1)} ms a step on average` +
      (where.value > 0 ? `, ${one.toFixed(1)} ms for this one. ` : ". ") +
      `A step asks the network ${calls} times, ` +
      (wasm ? "in WebAssembly" : "in plain JavaScript") +
      (crew.inWorkers ? `, in ${crew.ports.length === 1 ? "a Worker" : "two Workers"}.` : ".");
  }

  async function run() {
    crew.stop();
    const value = choice.input.value;
    const labels = Array.from({ length: N }, (_, k) =>
      value === "each" ? k : value === "none" ? -1 : Number(value));
    const request = {
      labels,
      steps: steps.get(),
      eta: kind.input.value === "ddpm" ? 1 : eta.get(),
      guidance: scale.get(),
      clip: clip.input.checked,
      seed: Math.min(4294967295, Math.max(0, Math.trunc(Number(seedInput.value) || 0))),
    };
    const mine = (running = {});
    following = true;
    const store = [];
    store.total = request.steps;
    store.text = value === "each" ? "the classes 0 to 9" :
      value === "none" ? "no chosen class" : `class ${value}`;
    const twice = value !== "none" && request.guidance !== 1 && request.guidance !== 0;
    store.calls = N * (twice ? 2 : 1);
    stop.disabled = false;
    element.dataset.state = "drawing";
    status.textContent = wasm ? "Drawing…"
      : "Drawing… This browser has no WebAssembly SIMD, so it takes a while.";
    const start = performance.now();
    let samples;
    try {
      samples = await crew.sample(request, size, (frame) => {
        if (running !== mine) return;
        store[frame.i] = frame;
        frames = store;
        const last = frame.i === store.total;
        if (calm.matches && frame.i && !last) return;
        if (following) show(last ? frame.i : Math.max(0, frame.i - 1));
        showTimes();
      });
    } catch (error) {
      console.warn("Sampling failed:", error);
      if (running !== mine) return;
      status.textContent = "Something went wrong while drawing. Reload the page to try again.";
      element.dataset.state = "failed";
      return;
    }
    if (running !== mine) return;
    running = null;
    stop.disabled = true;
    element.dataset.state = "ready";
    const so_far = store.length - 1;
    if (samples === null) {
      show(so_far);
      status.textContent = `Stopped after step ${so_far} of ${request.steps}.`;
      return;
    }
    status.textContent =
      `Drawn in ${request.steps} ${request.steps === 1 ? "step" : "steps"}, ` +
      `${seconds(performance.now() - start)}.`;
    element.dispatchEvent(new CustomEvent("dl-samples", { detail: { samples, ...request } }));
  }

  // A held arrow key changes a slider many times a second: wait for its end.
  let waiting;
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(run, 250);
  };
  function onKind() {
    eta.input.disabled = kind.input.value === "ddpm";
    eta.update();
  }
  function onClass() {
    scale.input.disabled = choice.input.value === "none";
  }
  kind.input.addEventListener("change", onKind);
  choice.input.addEventListener("change", onClass);
  for (const { input } of [steps, scale, kind, eta, choice, clip]) {
    input.addEventListener("change", soon);
  }
  seedInput.addEventListener("change", soon);
  nextSeed.addEventListener("click", () => {
    seedInput.value = (Number(seedInput.value) || 0) + 1;
    run();
  });
  timing.input.addEventListener("change", showTimes);
  where.addEventListener("input", () => {
    following = false;
    show(Math.min(Number(where.value), frames.length - 1));
    showTimes();
  });
  draw.addEventListener("click", run);
  stop.addEventListener("click", () => crew.stop());
  onKind();
  onClass();

  const name = options.model ?? about.data ?? "the model just trained";
  const controls = make("div", { className: "dl-knobs" }, choice.element, kind.element, seed,
    steps.element, scale.element, eta.element);
  if (!about.classes) for (const { element: one } of [choice, scale]) one.remove();
  const panel = make("div", { className: "dl-sampler", role: "group" },
    held.element, guess.element, way,
    make("div", { className: "dl-run" }, draw, stop, status), times, controls,
    make("div", { className: "dl-ticks" }, clip.element, timing.element));
  panel.setAttribute("aria-label", `Draw pictures with ${name}`);
  element.replaceChildren(panel);
  element.dataset.state = "ready";
  element.addEventListener("dl-end", () => crew.end());
  if (options.autostart !== "no") run();
  else status.textContent = "Press Draw.";
}

(globalThis.DiffusionApps ??= {}).sampler = sampler;
globalThis.DiffusionApps.runtime = () => diffusionRuntime(KERNEL);
