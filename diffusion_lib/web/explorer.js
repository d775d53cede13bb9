// The forward process, live: x_t = signal x_0 + noise eps for a picture, a schedule and a time.
// Stands on kit.js and pictures.js.

const T = 1000;
const SIDE = 16;
const MARGIN = { left: 34, right: 18, top: 10, bottom: 22 };

const math = {
  schedule,
  level,
  snr,
  logSnr,
  noise: (n, seed) => randn(n, seed),
  addNoise: (x0, eps, { signal, noise }) => x0.map((x, i) => signal * x + noise * eps[i]),
  normalDensity: (x) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI),
  // How many values fall into each of `bins` equal bins between low and high.
  histogram(values, low, high, bins) {
    const counts = new Float64Array(bins);
    for (const v of values) {
      const bin = Math.floor(((v - low) / (high - low)) * bins);
      if (bin >= 0 && bin < bins) counts[bin] += 1;
    }
    return counts;
  },
  mean: (values) => values.reduce((sum, v) => sum + v, 0) / values.length,
};

// "AAEC/w==" -> pixels from -1, paper, to 1, ink.
const pixels = (base64) => Float64Array.from(atob(base64), (c) => c.charCodeAt(0) / 127.5 - 1);

function mount(root, options = {}) {
  const pictures = Object.fromEntries(
    Object.entries(PICTURES).map(([name, data]) => [name, pixels(data)]),
  );
  pictures.own = new Float64Array(SIDE * SIDE).fill(-1);
  const tables = Object.fromEntries(Object.keys(SCHEDULES).map((name) => [name, schedule(name, T)]));
  const state = {
    t: Math.min(T, +(options.t ?? 300)),
    schedule: options.schedule in SCHEDULES ? options.schedule : "linear",
    picture: Object.keys(pictures)[0],
    seed: 0,
  };
  let eps = math.noise(SIDE * SIDE, state.seed);
  let cursor; // the pixel that the keyboard draws at, [row, column]

  // Controls.
  const redraw = soon(draw);
  const time = slider("time t", { min: 0, max: T, value: state.t, change: setTime });
  const schedules = choice(
    "noise schedule",
    Object.fromEntries(Object.keys(SCHEDULES).map((name) => [name, name])),
    state.schedule,
    (name) => ((state.schedule = name), redraw()),
  );
  const thumbnails = Object.fromEntries(
    Object.keys(pictures).map((name) => [name, name === "own" ? "your own" : thumbnail(name)]),
  );
  const shelf = choice("picture", thumbnails, state.picture, (name) => {
    state.picture = name;
    redraw();
  });
  const clear = button("Clear, and draw", () => {
    pictures.own.fill(-1);
    select("own");
    pad.focus();
  });
  const reseed = button("New noise", () => {
    eps = math.noise(SIDE * SIDE, ++state.seed);
    redraw();
  });

  // The equation in pictures, and the curves.
  const pad = h("canvas.dl-pixels.dl-pad", {
    tabindex: 0,
    role: "application",
    "aria-label":
      "The clean picture, 16 by 16 pixels. Draw on it with the mouse or a finger. On the " +
      "keyboard, arrow keys move, Space draws, Delete erases.",
  });
  const noiseView = h("canvas.dl-pixels", { role: "img" });
  const noisyView = h("canvas.dl-pixels", { role: "img" });
  const histogramView = h("canvas.dl-plot", { role: "img" });
  const barsView = h("canvas.dl-plot.dl-drag", { role: "img" });
  const snrView = h("canvas.dl-plot.dl-drag", { role: "img" });
  const titles = [0, 1, 2, 3].map(() => h("p.dl-title"));
  const panel = (view, title) => h("div", {}, title, view);
  const values = h("dl.dl-values");
  const { root: status, say } = announcer();
  root.replaceChildren(h("div.dl-kit", {},
    time.root,
    schedules,
    h("div.dl-panels", {},
      ...[pad, noiseView, noisyView, histogramView].map((view, i) => panel(view, titles[i]))),
    h("div.dl-controls", {}, shelf, h("div.dl-buttons", {}, clear, reseed)),
    values,
    h("div.dl-panels.dl-wide", {},
      panel(barsView, h("p.dl-title", {}, "signal's share of the variance, ", indexed("ᾱ", "t"))),
      panel(snrView, h("p.dl-title", {}, "log SNR"))),
    status,
  ));

  function thumbnail(name) {
    const view = h("canvas.dl-pixels", { role: "img", "aria-label": name });
    requestAnimationFrame(() => paint(view, pictures[name]));
    return view;
  }

  function setTime(t) {
    state.t = t;
    redraw();
  }

  function select(name) {
    state.picture = name;
    shelf.querySelector(`[value="${name}"]`).checked = true;
    redraw();
  }

  // Drawing: a soft brush, ink where the pointer goes.
  function ink(row, column, value = 1) {
    if (state.picture !== "own") pictures.own.set(pictures[state.picture]);
    for (let r = 0; r < SIDE; r++) {
      for (let c = 0; c < SIDE; c++) {
        const share = 1.6 - Math.hypot(r - row, c - column); // 1 at the pointer, 0 beyond 1.6
        if (share <= 0) continue;
        const i = r * SIDE + c;
        const wanted = value * Math.min(1, 2 * share - 1);
        pictures.own[i] = value > 0 ? Math.max(pictures.own[i], wanted) : Math.min(pictures.own[i], wanted);
      }
    }
    select("own");
  }

  function inkLine(from, to) {
    const steps = Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])) || 1;
    for (let i = 1; i <= steps; i++) {
      ink(from[0] + ((to[0] - from[0]) * i) / steps, from[1] + ((to[1] - from[1]) * i) / steps);
    }
  }

  let last;
  const place = (event) => {
    const box = pad.getBoundingClientRect();
    return [
      ((event.clientY - box.top) / box.height) * SIDE - 0.5,
      ((event.clientX - box.left) / box.width) * SIDE - 0.5,
    ];
  };
  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    cursor = undefined;
    last = place(event);
    inkLine(last, last);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!pad.hasPointerCapture(event.pointerId)) return;
    const here = place(event);
    inkLine(last, here);
    last = here;
  });
  pad.addEventListener("blur", () => ((cursor = undefined), redraw()));
  pad.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (move[event.key]) {
      const [dr, dc] = cursor ? move[event.key] : [0, 0];
      const inside = (v) => Math.min(SIDE - 1, Math.max(0, v));
      cursor = [inside((cursor?.[0] ?? 8) + dr), inside((cursor?.[1] ?? 8) + dc)];
      say(`row ${cursor[0] + 1}, column ${cursor[1] + 1}`);
    } else if (event.key === " ") ink(...(cursor ??= [8, 8]), 1);
    else if (event.key === "Delete" || event.key === "Backspace") ink(...(cursor ??= [8, 8]), -1);
    else return;
    event.preventDefault();
    redraw();
  });

  // The marker on a curve can be dragged along.
  for (const view of [barsView, snrView]) {
    const go = (event) => {
      const box = view.getBoundingClientRect();
      const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
      time.set(Math.round(T * Math.min(1, Math.max(0, share))));
      setTime(+time.input.value);
    };
    view.addEventListener("pointerdown", (event) => (view.setPointerCapture(event.pointerId), go(event)));
    view.addEventListener("pointermove", (event) => view.hasPointerCapture(event.pointerId) && go(event));
  }

  // A picture as ink on paper; what lies outside -1 to 1 is shown as full ink or bare paper.
  function paint(view, values) {
    const { paper, pixel } = colours(root);
    const [from, to] = [rgb(paper), rgb(pixel)];
    Object.assign(view, { width: SIDE, height: SIDE });
    const g = view.getContext("2d");
    const image = g.createImageData(SIDE, SIDE);
    values.forEach((v, i) => {
      const share = Math.min(1, Math.max(0, (v + 1) / 2));
      for (let k = 0; k < 3; k++) image.data[4 * i + k] = from[k] + share * (to[k] - from[k]);
      image.data[4 * i + 3] = 255;
    });
    g.putImageData(image, 0, 0);
  }

  function draw() {
    const { t } = state;
    const alphaBars = tables[state.schedule];
    const now = level(alphaBars, t);
    const x0 = pictures[state.picture];
    const noisy = math.addNoise(x0, eps, now);
    const mean = math.mean(noisy);
    const variance = math.mean(noisy.map((v) => (v - mean) ** 2));

    paint(pad, x0);
    if (cursor) {
      const g = pad.getContext("2d");
      g.fillStyle = colours(root).noise;
      g.fillRect(cursor[1], cursor[0], 1, 1);
    }
    paint(noiseView, eps);
    paint(noisyView, noisy);
    const name = () => indexed("x", t);
    titles[0].replaceChildren(number(now.signal), " × ", indexed("x", 0));
    titles[1].replaceChildren("+ ", number(now.noise), " × ", h("i", {}, "ε"));
    titles[2].replaceChildren("= ", name());
    titles[3].replaceChildren("pixels of ", name());
    noiseView.setAttribute("aria-label", "The noise: 256 standard normal numbers as a picture.");
    noisyView.setAttribute("aria-label", `The noisy picture at time ${t}: ${number(now.signal)} ` +
      `times the clean picture plus ${number(now.noise)} times the noise.`);

    drawHistogram(noisy, `Histogram of the pixels of the noisy picture: mean ${number(mean)}, ` +
      `variance ${number(variance)}. Over it the standard normal density.`);
    drawCurve(barsView, (a) => a, [0, 1], [0, 0.5, 1], number(alphaBars[t]), "alpha bar");
    const decibels = (a) => Math.log(a) - Math.log1p(-a);
    drawCurve(snrView, decibels, [-12, 12], [-10, 0, 10], number(logSnr(now)), "log SNR");

    const shown = {
      t: [t],
      [`ᾱ`]: [number(alphaBars[t])],
      SNR: [number(snr(now))],
      "log SNR": [number(logSnr(now))],
      "pixels' mean": [number(mean)],
      "pixels' variance": [number(variance)],
    };
    values.replaceChildren(
      ...Object.entries(shown).map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, ...value))),
    );
    Object.assign(root.dataset, { t, schedule: state.schedule, picture: state.picture, seed: state.seed });
    say(`${state.schedule} schedule, time ${t}: signal ${number(now.signal)}, noise ` +
      `${number(now.noise)}, SNR ${number(snr(now))}.`);
  }

  function drawHistogram(noisy, text) {
    const { g, width, height } = sharp(histogramView);
    const c = colours(root);
    const [low, high, bins] = [-4, 4, 32];
    const each = (high - low) / bins;
    const density = [...math.histogram(noisy, low, high, bins)].map((n) => n / noisy.length / each);
    const bottom = height - 18;
    const top = Math.max(0.5, ...density) * 1.05;
    const X = (v) => ((v - low) / (high - low)) * width;
    const Y = (v) => bottom * (1 - v / top);
    g.fillStyle = c.order;
    g.globalAlpha = 0.55;
    density.forEach((d, i) => g.fillRect(X(low + i * each) + 0.5, Y(d), (width / bins) - 1, bottom - Y(d)));
    g.globalAlpha = 1;
    line(g, Array.from({ length: 81 }, (_, i) => low + i / 10).map((v) => [X(v), Y(math.normalDensity(v))]), c.noise, 2);
    line(g, [[0, bottom], [width, bottom]], c.muted, 1);
    letters(g, c.muted, "center");
    for (const v of [-3, -1, 1, 3]) g.fillText(minus(v), X(v), bottom + 13);
    histogramView.setAttribute("aria-label", text);
  }

  // f(alpha_bar_t) over t for all schedules, the chosen one in front, with a marker at t.
  function drawCurve(view, f, [low, high], ticks, value, quantity) {
    const { g, width, height } = sharp(view);
    const c = colours(root);
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const X = (t) => MARGIN.left + (t / T) * (right - MARGIN.left);
    const Y = (v) => bottom - ((Math.min(high, Math.max(low, v)) - low) / (high - low)) * (bottom - MARGIN.top);
    letters(g, c.muted, "right");
    for (const v of ticks) {
      line(g, [[MARGIN.left, Y(v)], [right, Y(v)]], c.line, 1);
      g.fillText(minus(v), MARGIN.left - 6, Y(v) + 4);
    }
    g.textAlign = "center";
    for (const t of [0, 250, 500, 750, 1000]) g.fillText(t, X(t), bottom + 16);
    const order = Object.keys(tables).sort((a, b) => (a === state.schedule) - (b === state.schedule));
    for (const name of order) {
      const chosen = name === state.schedule;
      const points = [];
      for (let t = 0; t <= T; t += 4) points.push([X(t), Y(f(tables[name][t]))]);
      line(g, points, chosen ? c.order : c.muted, chosen ? 2.5 : 1, chosen ? 1 : 0.6);
    }
    const here = Y(f(tables[state.schedule][state.t]));
    line(g, [[X(state.t), MARGIN.top], [X(state.t), bottom]], c.noise, 1);
    g.fillStyle = c.noise;
    g.beginPath();
    g.arc(X(state.t), here, 5, 0, 7);
    g.fill();
    view.setAttribute("aria-label", `Curve of ${quantity} over time for the ${state.schedule} ` +
      `schedule, the others thinner behind it. At time ${state.t} it is ${value}.`);
  }

  watch(root, redraw);
  draw();
}

globalThis.DiffusionExplorer = { math };
(globalThis.DiffusionApps ??= {}).explorer = mount;
