// Diffusion models in the browser: the library's UNet, denoiser, samplers and random numbers.
// One function that refers to nothing outside itself, because its text also becomes a Worker.
function diffusionRuntime(kernelBase64) {
  // -------------------------------------------------------------------------------- weights
  const half = (h) => {
    const sign = h & 0x8000 ? -1 : 1;
    const exponent = (h >> 10) & 31;
    const fraction = (h & 1023) / 1024;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
  };

  // A safetensors file -> {about, tensors: {name: {shape, data}}}.
  function readSafetensors(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const halves = new Float32Array(65536);
    for (let h = 0; h < 65536; h++) halves[h] = half(h);
    const read = {
      F16: (bytes) => new Float32Array(new Uint16Array(bytes)).map((h) => halves[h]),
      F32: (bytes) => new Float32Array(bytes),
      F64: (bytes) => new Float64Array(bytes),
    };
    const { __metadata__: metadata, ...entries } = header;
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries)) {
      tensors[name] = { shape, data: read[dtype](buffer.slice(8 + length + from, 8 + length + to)) };
    }
    return { about: JSON.parse(metadata.denoiser), tensors };
  }

  function bytesOf(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  async function inflate(base64) {
    const stream = new Blob([bytesOf(base64)]).stream();
    const inflated = stream.pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(inflated).arrayBuffer());
  }

  // A model of the site: base64 of the deflated file, all its even bytes before all its odd ones.
  async function unpack(text) {
    const planes = await inflate(text);
    const file = new Uint8Array(planes.length);
    const middle = planes.length / 2;
    for (let i = 0; i < middle; i++) {
      file[2 * i] = planes[i];
      file[2 * i + 1] = planes[middle + i];
    }
    return file.buffer;
  }

  // ------------------------------------------------------------------------- random numbers
  // torch.Generator().manual_seed(seed) and torch.randn on a CPU, in float32.
  class Generator {
    constructor(seed) {
      const s = (this.state = new Uint32Array(624));
      s[0] = seed;
      for (let i = 1; i < 624; i++) {
        s[i] = Math.imul(1812433253, s[i - 1] ^ (s[i - 1] >>> 30)) + i;
      }
      this.next = 624;
      this.kept = null;
    }

    uint32() {
      const s = this.state;
      if (this.next === 624) {
        for (let k = 0; k < 624; k++) {
          const y = (s[k] & 0x80000000) | (s[(k + 1) % 624] & 0x7fffffff);
          s[k] = s[(k + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
        }
        this.next = 0;
      }
      let y = s[this.next++];
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      return (y ^ (y >>> 18)) >>> 0;
    }

    // Fewer than 16 numbers: one pair at a time, in float64; the second of a pair waits.
    single() {
      if (this.kept !== null) {
        const kept = this.kept;
        this.kept = null;
        return kept;
      }
      const uniform = () => {
        const high = this.uint32();
        return ((high & 0x1fffff) * 2 ** 32 + this.uint32()) * 2 ** -53;
      };
      const angle = 2 * Math.PI * uniform();
      const radius = Math.sqrt(-2 * Math.log1p(-uniform()));
      this.kept = radius * Math.sin(angle);
      return radius * Math.cos(angle);
    }

    // Box and Muller on 16 uniform numbers: the first 8 give radii, the last 8 angles.
    sixteen(out, from) {
      for (let j = from; j < from + 8; j++) {
        const radius = Math.fround(Math.sqrt(-2 * Math.fround(Math.log(1 - out[j]))));
        const angle = Math.fround(Math.fround(2 * Math.PI) * out[j + 8]);
        out[j] = radius * Math.cos(angle);
        out[j + 8] = radius * Math.sin(angle);
      }
    }

    randn(n) {
      const out = new Float32Array(n);
      if (n < 16) return out.map(() => this.single());
      const draw = (from, to) => {
        for (let i = from; i < to; i++) out[i] = (this.uint32() & 0xffffff) * 2 ** -24;
      };
      draw(0, n);
      for (let i = 0; i + 16 <= n; i += 16) this.sixteen(out, i);
      if (n % 16) {
        draw(n - 16, n);
        this.sixteen(out, n - 16);
      }
      return out;
    }
  }

  // ---------------------------------------------------------------------------- the network
  // The operations of kernel.c in plain JavaScript, for browsers without WebAssembly SIMD.
  // Pointers count bytes, as in WebAssembly.
  function plainKernel(F) {
    const silu = (x) => x / (1 + Math.exp(-x));
    return {
      conv(x, w, bias, out, Ho, Wo, Wp, Ci, Co, K, stride) {
        (x >>= 2), (w >>= 2), (bias >>= 2), (out >>= 2);
        const n = K * Ci;
        for (let co = 0; co < Co; co += 4) {
          for (let y = 0; y < Ho; y++) {
            for (let o = 0; o < Wo; o += 2) {
              const next = o + 1 < Wo ? 1 : 0;
              const to = next * stride * Ci;
              let a0 = F[bias + co], a1 = F[bias + co + 1], a2 = F[bias + co + 2], a3 = F[bias + co + 3];
              let b0 = a0, b1 = a1, b2 = a2, b3 = a3;
              for (let ky = 0; ky < K; ky++) {
                let p = x + ((y * stride + ky) * Wp + o * stride) * Ci;
                let q = w + ky * n * Co + co;
                for (let i = 0; i < n; i++, p++, q += Co) {
                  const u = F[p], v = F[p + to];
                  const w0 = F[q], w1 = F[q + 1], w2 = F[q + 2], w3 = F[q + 3];
                  (a0 += u * w0), (a1 += u * w1), (a2 += u * w2), (a3 += u * w3);
                  (b0 += v * w0), (b1 += v * w1), (b2 += v * w2), (b3 += v * w3);
                }
              }
              let r = out + (y * Wo + o) * Co + co;
              (F[r] = a0), (F[r + 1] = a1), (F[r + 2] = a2), (F[r + 3] = a3);
              r += next * Co;
              (F[r] = b0), (F[r + 1] = b1), (F[r + 2] = b2), (F[r + 3] = b3);
            }
          }
        }
      },
      silu(x, n) {
        for (let i = x >> 2; i < (x >> 2) + n; i++) F[i] = silu(F[i]);
      },
      add(a, b, n) {
        for (let i = 0; i < n; i++) F[(a >> 2) + i] += F[(b >> 2) + i];
      },
      norm(x, gain, bias, out, scratch, H, W, C, groups, pad, act) {
        (x >>= 2), (gain >>= 2), (bias >>= 2), (out >>= 2);
        const size = C / groups;
        for (let g = 0; g < C; g += size) {
          let mean = 0, variance = 0;
          for (let i = 0; i < H * W; i++) {
            for (let c = g; c < g + size; c++) mean += F[x + i * C + c];
          }
          mean /= H * W * size;
          for (let i = 0; i < H * W; i++) {
            for (let c = g; c < g + size; c++) variance += (F[x + i * C + c] - mean) ** 2;
          }
          const inverse = 1 / Math.sqrt(variance / (H * W * size) + 1e-5);
          for (let y = 0; y < H; y++) {
            for (let i = 0; i < W; i++) {
              const p = x + (y * W + i) * C;
              const o = out + ((y + pad) * (W + 2 * pad) + i + pad) * C;
              for (let c = g; c < g + size; c++) {
                const v = (F[p + c] - mean) * inverse * F[gain + c] + F[bias + c];
                F[o + c] = act ? silu(v) : v;
              }
            }
          }
        }
      },
      attention(qkv, out, scratch, N, C, heads) {
        (qkv >>= 2), (out >>= 2), (scratch >>= 2);
        const D = C / heads;
        for (let h = 0; h < C; h += D) {
          for (let i = 0; i < N; i++) {
            let most = -Infinity, sum = 0;
            for (let j = 0; j < N; j++) {
              let dot = 0;
              const q = qkv + i * 3 * C + h, k = qkv + (j * 3 + 1) * C + h;
              for (let c = 0; c < D; c++) dot += F[q + c] * F[k + c];
              F[scratch + j] = dot /= Math.sqrt(D);
              if (dot > most) most = dot;
            }
            for (let j = 0; j < N; j++) sum += F[scratch + j] = Math.exp(F[scratch + j] - most);
            for (let c = h; c < h + D; c++) {
              let a = 0;
              for (let j = 0; j < N; j++) a += F[scratch + j] * F[qkv + (j * 3 + 2) * C + c];
              F[out + i * C + c] = a / sum;
            }
          }
        }
      },
      copy(x, out, H, W, C, pixel, row, up) {
        for (let y = 0; y < H; y++) {
          for (let i = 0; i < W; i++) {
            const p = (x >> 2) + ((y >> up) * (W >> up) + (i >> up)) * C;
            F.copyWithin((out >> 2) + y * row + i * pixel, p, p + C);
          }
        }
      },
    };
  }

  // The compiled kernel, or null where the browser has no WebAssembly SIMD.
  async function compileKernel() {
    try {
      return await WebAssembly.compile(await inflate(kernelBase64));
    } catch {
      return null;
    }
  }

  // A UNet as its configuration describes it: net(x, t, row) -> out. x and out: [C][H][W].
  //
  // Made in two passes. The first walks through the network once, gives each tensor its place in
  // memory and notes each operation; then the memory is made and filled. A call runs the notes.
  function makeNet(config, tensors, [channels, height, width], module) {
    let F, K;
    let top = 8192; // bytes; below lies the kernel's stack
    const take = (floats) => {
      const pointer = top;
      top += (4 * floats + 15) & ~15;
      return pointer;
    };
    const fills = [];
    const steps = [];
    const eight = (n) => (n + 7) & ~7;

    const vectors = {};
    function vector(name) {
      if (!vectors[name]) {
        const { data } = tensors[name];
        fills.push([(vectors[name] = take(eight(data.length))), data]);
      }
      return vectors[name];
    }
    // [Co][Ci][K][K] -> [K][K][Ci][Co], Co filled up with zeros to a multiple of 8.
    function weight(name) {
      const { shape: [Co, Ci, size = 1], data } = tensors[name];
      const wide = eight(Co);
      const packed = new Float32Array(size * size * Ci * wide);
      for (let c = 0, from = 0; c < Co; c++) {
        for (let i = 0; i < Ci; i++) {
          for (let k = 0; k < size * size; k++) packed[(k * Ci + i) * wide + c] = data[from++];
        }
      }
      const pointer = take(packed.length);
      fills.push([pointer, packed]);
      return pointer;
    }

    // Buffers with a border of zeros, shared: only their middle is ever written.
    const borders = {};
    const border = (H, W, C) => (borders[[H, W, C]] ??= take((H + 2) * (W + 2) * C));
    const inside = (p, W, C) => p + 4 * (W + 3) * C; // the first pixel within the border
    const scratch = take(Math.max(4096, height * width));

    // x has a border where the kernel is 3 wide. {p, H, W, C} is a picture at pointer p.
    function conv(name, x, { stride = 1, bias = vector(`${name}.bias`) } = {}) {
      const [Co, Ci, size = 1] = tensors[`${name}.weight`].shape;
      const w = weight(`${name}.weight`);
      const out = { H: x.H / stride, W: x.W / stride, C: eight(Co) };
      out.p = take(out.H * out.W * out.C);
      const row = x.W + size - 1;
      steps.push(() =>
        K.conv(x.p, w, bias, out.p, out.H, out.W, row, Ci, out.C, size, stride));
      return out;
    }
    const linear = (name, p) => conv(name, { p, H: 1, W: 1 }).p;
    function bordered(x, up = 0) {
      const H = x.H << up, W = x.W << up, C = x.C;
      const p = border(H, W, C);
      steps.push(() => K.copy(x.p, inside(p, W, C), H, W, C, C, (W + 2) * C, up));
      return { p, H, W, C };
    }
    function norm(name, x, pad, act, gain = vector(`${name}.weight`), bias = vector(`${name}.bias`)) {
      const { H, W, C } = x;
      const p = pad ? border(H, W, C) : take(H * W * C);
      steps.push(() => K.norm(x.p, gain, bias, p, scratch, H, W, C, config.groups, pad, act));
      return { p, H, W, C };
    }

    function block(name, x) {
      const e = linear(`${name}.embedding`, embedding);
      const C = tensors[`${name}.conv1.bias`].data.length;
      const first = norm(`${name}.norm1`, x, 1, 1);
      let h;
      if (config.conditioning === "add") {
        // The embedding is the same for all pixels: part of the bias.
        const given = vector(`${name}.conv1.bias`), bias = take(C);
        steps.push(() => (K.copy(given, bias, 1, 1, C, C, C, 0), K.add(bias, e, C)));
        h = norm(`${name}.norm2`, conv(`${name}.conv1`, first, { bias }), 1, 1);
      } else {
        // (norm * gain + bias) * (1 + scale) + shift is a norm with another gain and bias.
        const gain = vector(`${name}.norm2.weight`), bias = vector(`${name}.norm2.bias`);
        const newGain = take(C), newBias = take(C);
        steps.push(() => {
          for (let c = 0; c < C; c++) {
            const scale = 1 + F[e / 4 + c];
            F[newGain / 4 + c] = F[gain / 4 + c] * scale;
            F[newBias / 4 + c] = F[bias / 4 + c] * scale + F[e / 4 + C + c];
          }
        });
        h = norm(`${name}.norm2`, conv(`${name}.conv1`, first), 1, 1, newGain, newBias);
      }
      const out = conv(`${name}.conv2`, h);
      const shortcut = tensors[`${name}.shortcut.weight`] ? conv(`${name}.shortcut`, x) : x;
      steps.push(() => K.add(out.p, shortcut.p, out.H * out.W * C));
      return out;
    }
    function attend(name, x) {
      const { H, W, C } = x;
      const qkv = conv(`${name}.qkv`, norm(`${name}.norm`, x, 0, 0));
      const mixed = { p: take(H * W * C), H, W, C };
      steps.push(() => K.attention(qkv.p, mixed.p, scratch, H * W, C, config.heads));
      const out = conv(`${name}.out`, mixed);
      steps.push(() => K.add(out.p, x.p, H * W * C));
      return out;
    }
    function stage(name, x) {
      const h = block(`${name}.block`, x);
      return tensors[`${name}.attention.qkv.weight`] ? attend(`${name}.attention`, h) : h;
    }
    function join(a, b) {
      const { H, W } = a, C = a.C + b.C, p = take(H * W * C);
      steps.push(() => {
        K.copy(a.p, p, H, W, a.C, C, W * C, 0);
        K.copy(b.p, p + 4 * a.C, H, W, b.C, C, W * C, 0);
      });
      return { p, H, W, C };
    }

    // The embedding of the time, plus that of the class.
    const dim = config.channels[0];
    const sinusoids = take(dim);
    const hidden = linear("time.0", sinusoids);
    steps.push(() => K.silu(hidden, config.time_channels));
    const embedding = linear("time.2", hidden);
    const label = take(config.time_channels);
    const classes = tensors["class_embedding.weight"];
    steps.push(() => {
      if (classes) K.add(embedding, label, config.time_channels);
      K.silu(embedding, config.time_channels);
    });

    // The way of UNet.forward in unet.py.
    const input = { p: take(channels * height * width), H: height, W: width, C: channels };
    let h = conv("first", bordered(input));
    const skips = [h];
    const levels = config.channels.length;
    for (let level = 0; level < levels; level++) {
      for (let k = 0; k < config.blocks; k++) skips.push((h = stage(`down.${level}.${k}`, h)));
      if (level < levels - 1) {
        skips.push((h = conv(`shrink.${level}`, bordered(h), { stride: 2 })));
      }
    }
    h = stage("middle2", stage("middle1", h));
    for (let level = 0; level < levels; level++) {
      for (let k = 0; k <= config.blocks; k++) h = stage(`up.${level}.${k}`, join(h, skips.pop()));
      if (level < levels - 1) h = conv(`grow.${level}`, bordered(h, 1));
    }
    const output = conv("last", norm("last_norm", h, 1, 1));

    if (module) {
      const memory = new WebAssembly.Memory({ initial: Math.ceil(top / 65536) });
      F = new Float32Array(memory.buffer);
      K = new WebAssembly.Instance(module, { env: { memory } }).exports;
    } else {
      F = new Float64Array(top / 4); // faster here than float32, which would be converted each time
      K = plainKernel(F);
    }
    for (const [pointer, data] of fills) F.set(data, pointer / 4);

    const pixels = height * width;
    return (x, t, row) => {
      for (let i = 0; i < dim / 2; i++) {
        const exponent = Math.fround(i / (dim / 2));
        const frequency = Math.fround(Math.exp(Math.fround(Math.fround(-Math.log(10000)) * exponent)));
        const angle = Math.fround(Math.fround(t) * frequency);
        F[sinusoids / 4 + i] = Math.cos(angle);
        F[sinusoids / 4 + dim / 2 + i] = Math.sin(angle);
      }
      if (classes) {
        const from = row * config.time_channels;
        F.set(classes.data.subarray(from, from + config.time_channels), label / 4);
      }
      for (let c = 0; c < channels; c++) {
        for (let i = 0; i < pixels; i++) F[input.p / 4 + i * channels + c] = x[c * pixels + i];
      }
      for (const step of steps) step();
      const out = new Float32Array(channels * pixels);
      for (let c = 0; c < channels; c++) {
        for (let i = 0; i < pixels; i++) out[c * pixels + i] = F[output.p / 4 + i * output.C + c];
      }
      return out;
    };
  }

  // --------------------------------------------------------------------- levels and samplers
  const rint = (v) => {
    const down = Math.floor(v);
    const over = v - down;
    return over > 0.5 || (over === 0.5 && down % 2) ? down + 1 : down;
  };

  // schedule.levels(n) with trailing spacing: n + 1 of {signal, noise, t}, clean data last.
  function makeLevels({ schedule }, tensors, n) {
    const u = Array.from({ length: n }, (_, i) => 1 - i / n);
    if (schedule.name === "flow") {
      const times = [...u.map((one) => Math.max(one, schedule.t_min)), 0];
      return times.map((t) => ({ signal: 1 - t, noise: t, t }));
    }
    if (schedule.name === "edm") {
      const root = 1 / schedule.rho;
      const low = schedule.sigma_min ** root, high = schedule.sigma_max ** root;
      const times = [...u.map((one) => (low + one * (high - low)) ** schedule.rho), 0];
      return times.map((t) => ({ signal: 1, noise: t, t }));
    }
    const bars = tensors.alpha_bars.data; // of any discrete schedule, t = 0..T
    const T = bars.length - 1;
    const times = [...u.map((_, i) => rint(T - (i * T) / n)), 0];
    return times.map((t) => ({ signal: Math.sqrt(bars[t]), noise: Math.sqrt(1 - bars[t]), t }));
  }

  // (a, b) of the network's target a x_0 + b eps, as in predict.py.
  const SIGMA_DATA = 0.5;
  const COEFFICIENTS = {
    eps: () => [0, 1],
    x0: () => [1, 0],
    v: ({ signal, noise }) => [-noise, signal],
    flow: () => [-1, 1],
    edm: ({ signal, noise }) => {
      const scale = SIGMA_DATA * Math.hypot(noise, signal * SIGMA_DATA);
      return [noise / scale, (-signal * SIGMA_DATA ** 2) / scale];
    },
  };

  // A model ready to sample: file is the ArrayBuffer of a safetensors file.
  function makeModel(file, module) {
    const { about, tensors } = readSafetensors(file);
    const net = makeNet(about.net, tensors, about.image_shape, module);
    const discrete = "alpha_bars" in tensors;

    // Denoiser.forward for one picture: the estimate of x_0.
    function denoise(x, level, label) {
      const { signal, noise, t } = level;
      const [a, b] = COEFFICIENTS[about.kind](level);
      const edm = about.kind === "edm";
      const scale = edm ? 1 / Math.hypot(noise, signal * SIGMA_DATA) : 1;
      const time = edm ? Math.log(noise) / 4 : discrete ? t : 1000 * t;
      const out = net(edm ? x.map((v) => v * scale) : x, time, label + 1);
      const det = signal * b - noise * a;
      return out.map((o, i) => (b * x[i] - noise * o) / det);
    }

    // samplers.sample with ddim (or ddpm: eta = 1), guidance.cfg and guidance.clip.
    // labels: a class or -1 for each picture. Of all these pictures, only those in [from, to) are
    // drawn (and returned), with the noise that they have among the others. onStep({i, x, x0,
    // level}) is told of each step; alive() says whether to go on, and may take a moment to listen.
    async function sample(options, onStep, alive) {
      const { labels, steps, eta, guidance, clip, seed, from = 0, to: end = labels.length } = options;
      const size = about.image_shape.reduce((a, b) => a * b);
      const levels = makeLevels(about, tensors, steps);
      const generator = new Generator(seed);
      const std = Math.hypot(levels[0].signal, levels[0].noise);
      const randn = () => generator.randn(labels.length * size).slice(from * size, end * size);
      let x = randn().map((v) => v * std);
      onStep({ i: 0, x, x0: null, level: levels[0] });
      for (let i = 0; i < steps; i++) {
        const now = levels[i], to = levels[i + 1];
        const x0 = new Float32Array(x.length);
        for (let k = 0; k < end - from; k++) {
          if (!(await alive())) return null;
          const picture = x.subarray(k * size, (k + 1) * size);
          const label = labels[from + k];
          const guided = guidance !== 1 && label >= 0;
          let guess = denoise(picture, now, guided && guidance === 0 ? -1 : label);
          if (guided && guidance !== 0) {
            const free = denoise(picture, now, -1);
            guess = free.map((u, j) => u + guidance * (guess[j] - u));
          }
          x0.set(clip ? guess.map((v) => Math.min(1, Math.max(-1, v))) : guess, k * size);
        }
        const ratio = (now.signal * to.noise) / (now.noise * to.signal);
        const nu = eta * to.noise * Math.sqrt(Math.max(0, 1 - ratio * ratio));
        const z = eta > 0 && to.noise > 0 ? randn() : null;
        const keep = Math.sqrt(Math.max(0, to.noise ** 2 - nu ** 2));
        x = x.map((v, j) => {
          const eps = (v - now.signal * x0[j]) / now.noise;
          return to.signal * x0[j] + keep * eps + (z ? nu * z[j] : 0);
        });
        onStep({ i: i + 1, x, x0, level: to });
      }
      return x;
    }
    return { about, net, denoise, sample };
  }

  // ------------------------------------------------------------------------------ the Worker
  // Messages in: {load: text or ArrayBuffer}, {sample: options, id}, {stop: true}.
  // Messages out: {ready: about, wasm}, {id, i, x, x0, t, ms}, {id, done: x or null}, {failed}.
  function serve(port) {
    let model, current = 0, module;
    let last = performance.now();
    const pause = () => new Promise((go) => setTimeout(go));
    const jobs = {
      async load({ load }) {
        const file = typeof load === "string" ? await unpack(load) : load;
        module = await compileKernel();
        model = makeModel(file, module);
        port.postMessage({ ready: model.about, wasm: module !== null });
      },
      async sample({ sample, id }) {
        current = id;
        let start = performance.now();
        const onStep = ({ i, x, x0, level }) => {
          const ms = performance.now() - start;
          port.postMessage({ id, i, x, x0, t: level.t, noise: level.noise, ms });
          start = performance.now();
        };
        const alive = async () => {
          if (performance.now() - last > 30) {
            await pause();
            last = performance.now();
          }
          return current === id;
        };
        port.postMessage({ id, done: await model.sample(sample, onStep, alive) });
      },
      async stop() {
        current = 0;
      },
    };
    port.onmessage = async ({ data }) => {
      try {
        for (const job of ["load", "sample", "stop"]) if (job in data) await jobs[job](data);
      } catch (error) {
        port.postMessage({ failed: String(error) });
      }
    };
  }

  return { Generator, readSafetensors, unpack, compileKernel, makeNet, makeModel, serve };
}
