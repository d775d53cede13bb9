// What the small apps of the page share: noise schedules, seeded noise, controls, sharp canvases.
// build.py joins this file and an app's own into one script.

// Noise schedules, as in diffusion_lib/noise.py. A schedule is its alpha_bar_0 .. alpha_bar_T.

const linspace = (a, b, n) => Float64Array.from({ length: n }, (_, i) => a + ((b - a) * i) / (n - 1));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

function fromBetas(betas) {
  const alphaBars = new Float64Array(betas.length + 1).fill(1);
  betas.forEach((beta, i) => (alphaBars[i + 1] = alphaBars[i] * (1 - beta)));
  return alphaBars;
}

// alpha_bar_t is curve(t) / curve(0); only the ratios of neighbours matter here.
function fromCurve(T, curve, betaMax = 0.999) {
  const betas = Float64Array.from({ length: T }, (_, i) => 1 - curve(i + 1) / curve(i));
  return fromBetas(betas.map((beta) => Math.min(beta, betaMax)));
}

const SCHEDULES = {
  linear: (T) => fromBetas(linspace(1e-4, 0.02, T)),
  quadratic: (T) => fromBetas(linspace(1e-4 ** 0.5, 0.02 ** 0.5, T).map((root) => root ** 2)),
  cosine: (T) => fromCurve(T, (t) => Math.cos((((t / T + 0.008) / 1.008) * Math.PI) / 2) ** 2),
  sigmoid: (T) => fromCurve(T, (t) => sigmoid(3) - sigmoid(-3 + (t / T) * 6)),
};
const schedule = (name, T = 1000) => SCHEDULES[name](T);

// How noisy time t is: x_t = signal x_0 + noise eps.
const level = (alphaBars, t) => ({
  signal: Math.sqrt(alphaBars[t]),
  noise: Math.sqrt(1 - alphaBars[t]),
  t,
});
const snr = (l) => (l.signal / l.noise) ** 2;
const logSnr = (l) => 2 * (Math.log(l.signal) - Math.log(l.noise));

// Halves go to the even neighbour, as in PyTorch, so that both walk down the same grid.
const roundEven = (v) => (v % 1 === 0.5 ? 2 * Math.round(v / 2) : Math.round(v));

// n + 1 levels, the noisiest first, clean data last (the library's spacing "trailing").
function levels(alphaBars, n) {
  const T = alphaBars.length - 1;
  const times = Array.from({ length: n }, (_, i) => roundEven(T - (i * T) / n));
  return [...times, 0].map((t) => level(alphaBars, t));
}

// n standard normal numbers: mulberry32 and the Box-Muller transform. One seed, one sequence.
function randn(n, seed) {
  const uniform = generator(seed);
  const out = new Float64Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    out[i] = radius * Math.cos(angle);
    if (i + 1 < n) out[i + 1] = radius * Math.sin(angle);
  }
  return out;
}

function generator(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Page: elements and controls.

// h("p.note", {id: "a"}, "text", child): an element; properties that start with "on" listen.
function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const button = (text, onclick, properties = {}) =>
  h("button", { type: "button", onclick, ...properties }, text);

// A labelled slider with its value beside it. `say` turns a value into what is shown and read.
function slider(label, { min, max, step = 1, value, say = String, change }) {
  const input = h("input", { type: "range", min, max, step, "aria-label": label });
  const output = h("output");
  const show = () => {
    output.textContent = say(+input.value);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => (show(), change(+input.value)));
  const set = (v) => ((input.value = v), show());
  set(value);
  return { root: h("label.dl-slider", {}, h("span", {}, label), input, output), input, set };
}

// One of several: native radio buttons that look like pills. `options`: value -> label or element.
function choice(legend, options, value, change) {
  const name = `dl-${Math.random()}`; // several apps on a page, each with groups of its own
  const inputs = Object.entries(options).map(([key, label]) => {
    const input = h("input", { type: "radio", name, value: key, onchange: () => change(key) });
    input.checked = key === value;
    return h("label", { "data-value": key }, input, h("span", {}, label));
  });
  return h("fieldset.dl-choice", {}, h("legend", {}, legend), ...inputs);
}

// What a screen reader is told, once the reader has stopped moving things.
function announcer() {
  const root = h("p.dl-hidden", { role: "status", "aria-live": "polite" });
  let timer;
  const say = (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => root.textContent !== text && (root.textContent = text), 400);
  };
  return { root, say };
}

// Draw once in the next frame, however often it is asked for.
function soon(draw) {
  let asked = false;
  return () => {
    if (!asked) requestAnimationFrame(() => ((asked = false), draw()));
    asked = true;
  };
}

// The context of a canvas with one backing pixel per screen pixel, scaled to CSS pixels, cleared.
function sharp(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = globalThis.devicePixelRatio || 1;
  const [w, hgt] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== hgt) Object.assign(canvas, { width: w, height: hgt });
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, width, height);
  return { g, width, height };
}

// The theme's colours, from the variables that apps.css sets on the app.
function colours(root) {
  const style = getComputedStyle(root);
  const names = ["ink", "muted", "line", "ground", "order", "noise", "paper", "pixel"];
  return Object.fromEntries(names.map((n) => [n, style.getPropertyValue(`--app-${n}`).trim()]));
}

// Any opaque CSS colour -> [r, g, b]; a canvas gives it back as "#rrggbb".
function rgb(colour) {
  const g = document.createElement("canvas").getContext("2d");
  g.fillStyle = colour;
  return [1, 3, 5].map((i) => parseInt(g.fillStyle.slice(i, i + 2), 16));
}

// Redraw when the theme, the width or the sharpness of the screen changes.
function watch(root, redraw) {
  new ResizeObserver(redraw).observe(root);
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Numbers and letters.

const minus = (v) => String(v).replace("-", "−");

// The digits that matter: 0.630, 12.4, −0.424, 2.4e−9, ∞.
function number(v) {
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  const size = Math.abs(v);
  if (size > 0 && size < 5e-4) return minus(v.toExponential(1));
  return minus(v.toFixed(size < 10 ? 3 : size < 1000 ? 1 : 0));
}

const indexed = (letter, index) => h("span", {}, h("i", {}, letter), h("sub", {}, String(index)));

function line(g, points, colour, width, alpha = 1) {
  Object.assign(g, { strokeStyle: colour, lineWidth: width, globalAlpha: alpha, lineJoin: "round" });
  g.beginPath();
  for (const [x, y] of points) g.lineTo(x, y);
  g.stroke();
  g.globalAlpha = 1;
}

function letters(g, colour, align) {
  Object.assign(g, { fillStyle: colour, textAlign: align, font: "12px system-ui, sans-serif" });
}
