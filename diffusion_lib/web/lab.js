// A mixture of Gaussians in the plane: its exact density and score at every noise level, and
// particles that samplers lead from noise to data by the exact denoiser. Stands on kit.js.

const T = 1000;
const N = 1000; // particles
const REACH = 3.3; // the plane is shown from -REACH to REACH
const MODES = 8; // at most
const STEPS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100];
const SAMPLERS = { ddpm: "DDPM", ddim: "DDIM", heun: "ODE, Heun" };
const round = (m) => ({ weights: m.map((k) => k[0]), means: m.map((k) => [k[1], k[2]]), stds: m.map((k) => k[3]) });
const MIXTURES = {
  three: () => round([[0.5, -1.5, 0.8, 0.35], [0.3, 1.5, 1.1, 0.2], [0.2, 0.4, -1.5, 0.3]]),
  two: () => round([[0.8, -1.2, 0, 0.25], [0.2, 1.8, 0, 0.25]]),
  ring: () => round(Array.from({ length: 8 }, (_, k) => [
    1, 2 * Math.cos((k * Math.PI) / 4), 2 * Math.sin((k * Math.PI) / 4), 0.15,
  ])),
};

// The mixture at a noise level, in closed form: each component N(mean, std^2 I) has become
// N(signal mean, (signal^2 std^2 + noise^2) I). As diffusion_lib/toy.py.
function exact({ weights, means, stds }, { signal, noise }) {
  const K = weights.length;
  const total = weights.reduce((sum, w) => sum + w, 0);
  const variances = stds.map((std) => signal ** 2 * std ** 2 + noise ** 2);
  const constants = weights.map((w, k) => Math.log(w / total) - Math.log(2 * Math.PI * variances[k]));
  const p = new Float64Array(K);

  // Fills p with each component's posterior probability; returns the log density.
  function posterior(x, y) {
    let largest = -Infinity;
    for (let k = 0; k < K; k++) {
      const dx = x - signal * means[k][0];
      const dy = y - signal * means[k][1];
      p[k] = constants[k] - (dx * dx + dy * dy) / (2 * variances[k]);
      largest = Math.max(largest, p[k]);
    }
    let sum = 0;
    for (let k = 0; k < K; k++) sum += p[k] = Math.exp(p[k] - largest);
    for (let k = 0; k < K; k++) p[k] /= sum;
    return largest + Math.log(sum);
  }

  return {
    logDensity: posterior,
    posterior: (x, y) => (posterior(x, y), p),
    // The gradient of the log density.
    score(x, y) {
      posterior(x, y);
      let [sx, sy] = [0, 0];
      for (let k = 0; k < K; k++) {
        sx -= (p[k] * (x - signal * means[k][0])) / variances[k];
        sy -= (p[k] * (y - signal * means[k][1])) / variances[k];
      }
      return [sx, sy];
    },
    // E[x_0 | x_t]: the best denoiser there is.
    denoise(x, y) {
      posterior(x, y);
      let [ux, uy] = [0, 0];
      for (let k = 0; k < K; k++) {
        const gain = (signal * stds[k] ** 2) / variances[k];
        ux += p[k] * (means[k][0] + gain * (x - signal * means[k][0]));
        uy += p[k] * (means[k][1] + gain * (y - signal * means[k][1]));
      }
      return [ux, uy];
    },
  };
}

// Standard deviation of q(x_s | x_t, x_0): the square root of DDPM's beta-tilde.
function posteriorNu(now, to) {
  const ratio = (now.signal * to.noise) / (now.noise * to.signal);
  return to.noise * Math.sqrt(Math.max(0, 1 - ratio ** 2));
}

// One step of diffusion_lib/samplers.py, signal x_0 + sqrt(noise^2 - nu^2) eps + nu z, for points
// x = (x1, y1, x2, y2, ...). Heun averages eps over both ends of the step.
function advance(sampler, mixture, x, now, to, z) {
  const here = exact(mixture, now);
  const there = sampler === "heun" && to.noise > 0 ? exact(mixture, to) : undefined;
  const nu = sampler === "ddpm" && to.noise > 0 ? posteriorNu(now, to) : 0;
  const kept = Math.sqrt(to.noise ** 2 - nu ** 2);
  const out = new Float64Array(x.length);
  for (let i = 0; i < x.length; i += 2) {
    let [ux, uy] = here.denoise(x[i], x[i + 1]);
    let ex = (x[i] - now.signal * ux) / now.noise;
    let ey = (x[i + 1] - now.signal * uy) / now.noise;
    if (there) {
      const ax = to.signal * ux + to.noise * ex;
      const ay = to.signal * uy + to.noise * ey;
      const [vx, vy] = there.denoise(ax, ay);
      ex = (ex + (ax - to.signal * vx) / to.noise) / 2;
      ey = (ey + (ay - to.signal * vy) / to.noise) / 2;
      ux = (x[i] - now.noise * ex) / now.signal;
      uy = (x[i + 1] - now.noise * ey) / now.signal;
    }
    out[i] = to.signal * ux + kept * ex + (nu > 0 ? nu * z[i] : 0);
    out[i + 1] = to.signal * uy + kept * ey + (nu > 0 ? nu * z[i + 1] : 0);
  }
  return out;
}

// Where the points are at each level: start, ..., data. noise(k) gives step k's fresh noise.
function walk({ sampler, mixture, grid, start, noise }) {
  const states = [start];
  for (let k = 0; k + 1 < grid.length; k++) {
    states.push(advance(sampler, mixture, states[k], grid[k], grid[k + 1], noise(k)));
  }
  return states;
}

const CLEAN = { signal: 1, noise: 0, t: 0 };

// How much of each mode the points hold, and how wide it is. Each point counts for every mode, by
// its posterior probability: for exact samples that gives weights and stds without a bias.
function reached(mixture, points) {
  const { posterior } = exact(mixture, CLEAN);
  const K = mixture.weights.length;
  const [shares, squares] = [new Float64Array(K), new Float64Array(K)];
  for (let i = 0; i < points.length; i += 2) {
    const p = posterior(points[i], points[i + 1]);
    for (let k = 0; k < K; k++) {
      const [mx, my] = mixture.means[k];
      shares[k] += p[k];
      squares[k] += (p[k] * ((points[i] - mx) ** 2 + (points[i + 1] - my) ** 2)) / 2;
    }
  }
  const n = points.length / 2;
  return { weights: shares.map((s) => s / n), stds: squares.map((s, k) => Math.sqrt(s / shares[k])) };
}

// [xx, xy, yy] of points, and of the mixture itself.
function covariance(points) {
  const n = points.length / 2;
  let [mx, my, xx, xy, yy] = [0, 0, 0, 0, 0];
  for (let i = 0; i < points.length; i += 2) [mx, my] = [mx + points[i] / n, my + points[i + 1] / n];
  for (let i = 0; i < points.length; i += 2) {
    const [dx, dy] = [points[i] - mx, points[i + 1] - my];
    [xx, xy, yy] = [xx + (dx * dx) / n, xy + (dx * dy) / n, yy + (dy * dy) / n];
  }
  return [xx, xy, yy];
}

function exactCovariance({ weights, means, stds }) {
  const total = weights.reduce((sum, w) => sum + w, 0);
  const mean = (f) => weights.reduce((sum, w, k) => sum + (w / total) * f(means[k], stds[k] ** 2), 0);
  const [mx, my] = [mean(([x]) => x), mean(([, y]) => y)];
  return [
    mean(([x], v) => x * x + v) - mx * mx,
    mean(([x, y]) => x * y) - mx * my,
    mean(([, y], v) => y * y + v) - my * my,
  ];
}

// Off by how much: half the sum of the weights' errors, and the covariance's error relative to it,
// both in Frobenius norm.
function errors(mixture, points) {
  const total = mixture.weights.reduce((sum, w) => sum + w, 0);
  const found = reached(mixture, points);
  const weights = mixture.weights.reduce((sum, w, k) => sum + Math.abs(found.weights[k] - w / total), 0) / 2;
  const [right, got] = [exactCovariance(mixture), covariance(points)];
  const norm = ([xx, xy, yy]) => Math.sqrt(xx ** 2 + 2 * xy ** 2 + yy ** 2);
  return { weights, covariance: norm(got.map((v, i) => v - right[i])) / norm(right), found };
}

// n exact samples.
function sample({ weights, means, stds }, n, seed) {
  const uniform = generator(seed + 77777);
  const z = randn(2 * n, seed);
  const total = weights.reduce((sum, w) => sum + w, 0);
  for (let i = 0; i < n; i++) {
    let [k, left] = [0, uniform() * total];
    while (k < weights.length - 1 && left > weights[k]) left -= weights[k++];
    for (let d = 0; d < 2; d++) z[2 * i + d] = means[k][d] + stds[k] * z[2 * i + d];
  }
  return z;
}

const math = {
  MIXTURES, schedule, level, levels, exact, posteriorNu, advance, walk, reached, covariance,
  exactCovariance, errors, sample,
};

// Segments of the line where a grid of values crosses a threshold (marching squares). Where a cell
// has two crossings through opposite corners, either pairing will do at this size.
function contour(values, side, threshold, segment) {
  const cross = (a, b) => (threshold - a) / (b - a);
  for (let r = 0; r + 1 < side; r++) {
    for (let c = 0; c + 1 < side; c++) {
      const i = r * side + c;
      const corners = [values[i], values[i + 1], values[i + side + 1], values[i + side]];
      const [a, b, d, e] = corners;
      const points = [];
      if (a > threshold !== b > threshold) points.push([c + cross(a, b), r]);
      if (b > threshold !== d > threshold) points.push([c + 1, r + cross(b, d)]);
      if (e > threshold !== d > threshold) points.push([c + cross(e, d), r + 1]);
      if (a > threshold !== e > threshold) points.push([c, r + cross(a, e)]);
      for (let k = 0; k + 1 < points.length; k += 2) segment(points[k], points[k + 1]);
    }
  }
}

function mount(root, options = {}) {
  const alphaBars = schedule("linear", T);
  const state = {
    sampler: "ddim",
    steps: 10,
    t: Math.min(T, +(options.t ?? 0)),
    seed: +(options.seed ?? 0),
    playing: false,
    mode: 0,
    show: { density: true, score: true, trails: true },
  };
  let mixture = MIXTURES.three();
  let run; // {grid, states, chance}: the whole walk, so that time can be moved at will
  let fresh = new Map(); // step -> its noise; the same for every mixture and sampler

  // Controls.
  const redraw = soon(draw);
  const rerun = soon(() => (walkAgain(), draw()));
  const edited = () => {
    for (const preset of presets.querySelectorAll("input")) preset.checked = false;
    rerun();
  };
  const samplers = choice("sampler", SAMPLERS, state.sampler, (name) => {
    state.sampler = name;
    rerun();
  });
  const steps = slider("steps", {
    min: 0,
    max: STEPS.length - 1,
    value: STEPS.indexOf(state.steps),
    say: (i) => String(STEPS[i]),
    change: (i) => ((state.steps = STEPS[i]), rerun()),
  });
  const time = slider("time t", { min: 0, max: T, value: state.t, change: (t) => (play(false), moveTo(t)) });
  const playButton = button("Play", () => play(!state.playing));
  const stepButton = button("Step", () => (play(false), moveTo(nextTime())));
  const resetButton = button("Reset", () => (play(false), moveTo(T)));
  const reseed = button("New noise", () => {
    state.seed += 1;
    fresh = new Map();
    rerun();
  });
  const shown = h("fieldset.dl-choice", {}, h("legend", {}, "show"), ...Object.keys(state.show).map((name) => {
    const box = h("input", { type: "checkbox", value: name, onchange: () => ((state.show[name] = box.checked), redraw()) });
    box.checked = true;
    return h("label", {}, box, h("span", {}, name));
  }));
  const presets = choice("mixture", { three: "three modes", two: "two, 80 to 20", ring: "ring of eight" }, "three",
    (name) => ((mixture = MIXTURES[name]()), (state.mode = 0), handlesAgain(), rerun()));
  const modeTitle = h("legend");
  const weight = slider("weight", {
    min: 0.05, max: 1, step: 0.05, value: 1, say: (v) => v.toFixed(2),
    change: (v) => ((mixture.weights[state.mode] = v), edited()),
  });
  const std = slider("spread", {
    min: 0.05, max: 0.8, step: 0.05, value: 0.3, say: (v) => v.toFixed(2),
    change: (v) => ((mixture.stds[state.mode] = v), edited()),
  });
  const add = button("Add a mode", () => {
    mixture.weights.push(0.3);
    mixture.means.push([0, 0]);
    mixture.stds.push(0.25);
    state.mode = mixture.weights.length - 1;
    handlesAgain();
    handles.children[state.mode].focus();
    edited();
  });
  const remove = button("Remove it", () => {
    for (const list of [mixture.weights, mixture.means, mixture.stds]) list.splice(state.mode, 1);
    state.mode = Math.max(0, state.mode - 1);
    handlesAgain();
    handles.children[state.mode].focus();
    edited();
  });

  // The plane and the table.
  const plane = h("canvas.dl-plane", { role: "img" });
  const handles = h("div.dl-handles", { role: "group", "aria-label": "modes of the mixture" });
  const body = h("tbody");
  const verdict = h("p.dl-verdict");
  const where = h("p.dl-where");
  const { root: status, say } = announcer();
  root.replaceChildren(h("div.dl-kit", {},
    h("div.dl-controls", {}, samplers, presets),
    steps.root,
    h("div.dl-lab", {},
      h("div", {},
        h("div.dl-stage", {}, plane, handles),
        time.root,
        where,
        h("div.dl-buttons", {}, playButton, stepButton, resetButton, reseed)),
      h("div", {},
        h("table.dl-table", {},
          h("caption", {}, "Where the run ends, at t = 0"),
          h("thead", {}, h("tr", {}, ...["mode", "weight", "reached", "spread", "reached"].map((text) => h("th", { scope: "col" }, text)))),
          body),
        verdict,
        h("fieldset.dl-mode", {}, modeTitle, weight.root, std.root, h("div.dl-buttons", {}, add, remove)),
        shown)),
    status,
  ));

  // Handles: one button a mode, over the plane.
  const toPercent = (v) => `${(50 * (v + REACH)) / REACH}%`;
  function handlesAgain() {
    handles.replaceChildren(...mixture.means.map((_, k) => {
      const handle = button(String(k + 1), () => pick(k));
      handle.addEventListener("focus", () => pick(k));
      handle.addEventListener("pointerdown", (event) => {
        handle.setPointerCapture(event.pointerId);
        pick(k);
      });
      handle.addEventListener("pointermove", (event) => {
        if (!handle.hasPointerCapture(event.pointerId)) return;
        const box = plane.getBoundingClientRect();
        put(k, [
          ((event.clientX - box.left) / box.width) * 2 * REACH - REACH,
          REACH - ((event.clientY - box.top) / box.height) * 2 * REACH,
        ]);
      });
      handle.addEventListener("keydown", (event) => {
        const move = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
        if (!move) return;
        event.preventDefault();
        const far = event.shiftKey ? 0.5 : 0.1;
        put(k, mixture.means[k].map((v, d) => v + far * move[d]));
      });
      return handle;
    }));
    placeHandles();
  }

  function put(k, [x, y]) {
    const inside = (v) => Math.round(100 * Math.min(3, Math.max(-3, v))) / 100;
    mixture.means[k] = [inside(x), inside(y)];
    placeHandles();
    edited();
    say(`mode ${k + 1} at ${mixture.means[k].join(", ")}`);
  }

  function pick(k) {
    state.mode = k;
    placeHandles();
  }

  function placeHandles() {
    mixture.means.forEach(([x, y], k) => {
      const handle = handles.children[k];
      handle.style.left = toPercent(x);
      handle.style.top = toPercent(-y);
      handle.classList.toggle("dl-chosen", k === state.mode);
      handle.setAttribute("aria-label", `mode ${k + 1} at x ${x.toFixed(2)}, y ${y.toFixed(2)}; arrow keys move it`);
    });
    modeTitle.textContent = `mode ${state.mode + 1}`;
    weight.set(mixture.weights[state.mode]);
    std.set(mixture.stds[state.mode]);
    add.disabled = mixture.weights.length >= MODES;
    remove.disabled = mixture.weights.length <= 1;
  }

  // The run.
  function walkAgain() {
    const noise = (k) => {
      if (state.sampler === "ddpm" && !fresh.has(k)) fresh.set(k, randn(2 * N, 1000 * state.seed + k + 1));
      return fresh.get(k);
    };
    const grid = levels(alphaBars, state.steps);
    const start = randn(2 * N, 1000 * state.seed);
    const states = walk({ sampler: state.sampler, mixture, grid, start, noise });
    run = { grid, states, noise };
    tell();
  }

  // The step of the run that time t lies in, and the points at t: the sampler's own step, cut short.
  function at(t) {
    const k = run.grid.findLastIndex((l) => l.t >= t);
    if (run.grid[k].t === t) return [k, run.states[k]];
    const points = advance(state.sampler, mixture, run.states[k], run.grid[k], level(alphaBars, t), run.noise(k));
    return [k, points];
  }

  const nextTime = () => run.grid.find((l) => l.t < state.t)?.t ?? 0;

  function moveTo(t) {
    state.t = t;
    time.set(Math.round(t));
    redraw();
  }

  let last;
  function play(on) {
    if (on === state.playing) return;
    state.playing = on;
    playButton.textContent = on ? "Pause" : "Play";
    root.dataset.playing = on;
    if (!on) return;
    if (state.t <= 0) moveTo(T);
    last = undefined;
    requestAnimationFrame(tick);
  }

  // Six seconds from noise to data; for readers who want less motion, one step each 0.6 s.
  function tick(now) {
    if (!state.playing) return;
    last ??= now;
    if (calm()) {
      if (now - last >= 600) [last] = [now, moveTo(nextTime())];
    } else {
      moveTo(Math.max(0, state.t - ((now - last) / 6000) * T));
      last = now;
    }
    if (state.t <= 0) play(false);
    else requestAnimationFrame(tick);
  }
  new IntersectionObserver(([{ isIntersecting }]) => isIntersecting || play(false)).observe(plane);

  // Drawing.
  function draw() {
    if (!run) return;
    const { g, width } = sharp(plane);
    const c = colours(root);
    const t = Math.round(state.t);
    const now = level(alphaBars, t);
    const field = exact(mixture, now);
    const X = (x) => (width * (x + REACH)) / (2 * REACH);
    const Y = (y) => (width * (REACH - y)) / (2 * REACH);
    if (state.show.density) drawDensity(g, width, field, c);
    if (state.show.score) drawScore(g, X, Y, width, field, c);
    const [k, points] = at(t);
    if (state.show.trails) {
      for (let i = 0; i < 120; i += 2) {
        const trail = [...run.states.slice(0, k + 1), points];
        line(g, trail.map((x) => [X(x[i]), Y(x[i + 1])]), c.noise, 1, 0.45);
      }
    }
    g.fillStyle = c.noise;
    g.globalAlpha = 0.75;
    for (let i = 0; i < points.length; i += 2) g.fillRect(X(points[i]) - 1, Y(points[i + 1]) - 1, 2, 2);
    g.globalAlpha = 1;

    Object.assign(root.dataset, { t, step: k, steps: state.steps, sampler: state.sampler, seed: state.seed });
    where.textContent = `step ${k} of ${state.steps}, SNR ${number(snr(now))}`;
    plane.setAttribute("aria-label", `The plane with ${mixture.weights.length} modes at noise level t = ${t}: ` +
      `density, score as arrows, and ${N} particles after ${k} of ${state.steps} steps of ${SAMPLERS[state.sampler]}.`);
    if (!state.playing) say(`time ${t}, step ${k} of ${state.steps}. ${verdict.textContent}`);
  }

  const SIDE = 81;
  const heat = h("canvas", { width: SIDE, height: SIDE });
  function drawDensity(g, width, field, c) {
    const values = new Float64Array(SIDE * SIDE);
    let top = 0;
    for (let r = 0; r < SIDE; r++) {
      for (let q = 0; q < SIDE; q++) {
        const v = Math.exp(field.logDensity(REACH * ((2 * (q + 0.5)) / SIDE - 1), REACH * (1 - (2 * (r + 0.5)) / SIDE)));
        values[r * SIDE + q] = v;
        top = Math.max(top, v);
      }
    }
    const context = heat.getContext("2d");
    const image = context.createImageData(SIDE, SIDE);
    const colour = rgb(c.order);
    values.forEach((v, i) => image.data.set([...colour, 150 * Math.sqrt(v / top)], 4 * i));
    context.putImageData(image, 0, 0);
    g.drawImage(heat, 0, 0, width, width);
    const place = ([q, r]) => [((q + 0.5) / SIDE) * width, ((r + 0.5) / SIDE) * width];
    Object.assign(g, { strokeStyle: c.order, lineWidth: 1, globalAlpha: 0.55 });
    g.beginPath();
    for (const share of [0.02, 0.1, 0.3, 0.6, 0.9]) {
      contour(values, SIDE, share * top, (a, b) => (g.moveTo(...place(a)), g.lineTo(...place(b))));
    }
    g.stroke();
    g.globalAlpha = 1;
  }

  // Arrows point where the density rises; their length grows with the score, but is held back.
  function drawScore(g, X, Y, width, field, c) {
    const across = 15;
    const cell = (2 * REACH) / across;
    Object.assign(g, { strokeStyle: c.ink, fillStyle: c.ink, lineWidth: 1, globalAlpha: 0.4 });
    g.beginPath();
    for (let i = 0; i < across; i++) {
      for (let j = 0; j < across; j++) {
        const [x, y] = [(i + 0.5) * cell - REACH, (j + 0.5) * cell - REACH];
        const [sx, sy] = field.score(x, y);
        const size = Math.hypot(sx, sy) || 1;
        const length = (0.9 * cell * size) / (size + 2);
        const [dx, dy] = [(sx / size) * length, (-sy / size) * length];
        const scale = width / (2 * REACH);
        const [x1, y1] = [X(x) + (dx * scale) / 2, Y(y) + (dy * scale) / 2];
        g.moveTo(x1 - dx * scale, y1 - dy * scale);
        g.lineTo(x1, y1);
        const head = 0.35 * scale;
        for (const side of [0.5, -0.5]) {
          g.moveTo(x1 - head * (dx + side * dy), y1 - head * (dy - side * dx));
          g.lineTo(x1, y1);
        }
      }
    }
    g.stroke();
    g.globalAlpha = 1;
  }

  // The table: what the run reached, and what chance alone would do to an exact sample.
  function tell() {
    const end = run.states.at(-1);
    const now = errors(mixture, end);
    const total = mixture.weights.reduce((sum, w) => sum + w, 0);
    const percent = (v) => `${(100 * v).toFixed(v < 0.9995 ? 1 : 0)}%`;
    // Marked where three standard errors of N exact samples don't explain the difference.
    const cell = (got, wanted, error, show) => {
      const mark = Math.abs(got - wanted) > 3 * error ? (got > wanted ? " ↑" : " ↓") : "";
      return h(mark ? "td.dl-off" : "td", {}, show(got) + mark);
    };
    body.replaceChildren(...mixture.weights.map((w, k) => {
      const share = w / total;
      const [gotWeight, gotStd] = [now.found.weights[k], now.found.stds[k]];
      const s = mixture.stds[k];
      return h("tr", {},
        h("th", { scope: "row" }, String(k + 1)),
        h("td", {}, percent(share)),
        cell(gotWeight, share, Math.sqrt((share * (1 - share)) / N), percent),
        h("td", {}, s.toFixed(2)),
        cell(gotStd, s, s / (2 * Math.sqrt(N * share)), (v) => (Number.isFinite(v) ? v.toFixed(2) : "none")));
    }));
    const draws = Array.from({ length: 10 }, (_, i) => errors(mixture, sample(mixture, N, 500 + i)));
    const chance = (what) => percent(draws.reduce((sum, e) => sum + e[what], 0) / draws.length);
    verdict.textContent = `Weights off by ${percent(now.weights)}, covariance by ${percent(now.covariance)}. ` +
      `${N.toLocaleString("en")} exact samples are off by ${chance("weights")} and ${chance("covariance")}, by chance.`;
  }

  handlesAgain();
  walkAgain();
  watch(root, redraw);
  draw();
}

globalThis.DiffusionLab = { math };
(globalThis.DiffusionApps ??= {}).lab = mount;
