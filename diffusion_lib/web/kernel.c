// The operations of a UNet on one picture, in WebAssembly SIMD. Build: python build.py
//
// A picture is stored pixel by pixel, its C channels together (HWC). Channel counts are multiples
// of 8, except for a convolution's input. `x` of a convolution has a border of zeros, so its rows
// are Wp pixels long. All loops over channels run four at a time.
#include <wasm_simd128.h>

#define EXPORT __attribute__((visibility("default")))
typedef float f32;
typedef v128_t f32x4;

#define LOAD(p) wasm_v128_load(p)
#define STORE(p, a) wasm_v128_store(p, a)
#define ALL(a) wasm_f32x4_splat(a)
#define ADD(a, b) wasm_f32x4_add(a, b)
#define MUL(a, b) wasm_f32x4_mul(a, b)

// K x K convolution with a stride: x[..][Wp][Ci] -> out[Ho][Wo][Co].
// w: [K][K][Ci][Co], so that the kx and ci of one row of x run through memory together.
EXPORT void conv(const f32 *x, const f32 *w, const f32 *bias, f32 *out, int Ho, int Wo, int Wp,
                 int Ci, int Co, int K, int stride) {
  for (int co = 0; co < Co; co += 8) {
    const f32x4 b0 = LOAD(bias + co), b1 = LOAD(bias + co + 4);
    for (int y = 0; y < Ho; y++) {
      for (int o = 0; o < Wo; o += 4) {
        // Four pixels at once. Where fewer are left, the last one is computed again.
        const int last = Wo - 1 - o, j1 = last < 1 ? last : 1, j2 = last < 2 ? last : 2,
                  j3 = last < 3 ? last : 3;
        f32x4 a0 = b0, a1 = b1, c0 = b0, c1 = b1, d0 = b0, d1 = b1, e0 = b0, e1 = b1;
        const int to1 = j1 * stride * Ci, to2 = j2 * stride * Ci, to3 = j3 * stride * Ci;
        for (int ky = 0; ky < K; ky++) {
          const f32 *p = x + ((y * stride + ky) * Wp + o * stride) * Ci;
          const f32 *q = w + ky * K * Ci * Co + co;
          for (int i = 0; i < K * Ci; i++, p++, q += Co) {
            const f32x4 w0 = LOAD(q), w1 = LOAD(q + 4);
            f32x4 t = wasm_v128_load32_splat(p);
            a0 = ADD(a0, MUL(t, w0)), a1 = ADD(a1, MUL(t, w1));
            t = wasm_v128_load32_splat(p + to1);
            c0 = ADD(c0, MUL(t, w0)), c1 = ADD(c1, MUL(t, w1));
            t = wasm_v128_load32_splat(p + to2);
            d0 = ADD(d0, MUL(t, w0)), d1 = ADD(d1, MUL(t, w1));
            t = wasm_v128_load32_splat(p + to3);
            e0 = ADD(e0, MUL(t, w0)), e1 = ADD(e1, MUL(t, w1));
          }
        }
        f32 *r = out + (y * Wo + o) * Co + co;
        STORE(r, a0), STORE(r + 4, a1);
        STORE(r + j1 * Co, c0), STORE(r + j1 * Co + 4, c1);
        STORE(r + j2 * Co, d0), STORE(r + j2 * Co + 4, d1);
        STORE(r + j3 * Co, e0), STORE(r + j3 * Co + 4, e1);
      }
    }
  }
}

// exp to about 1e-7: x = n log 2 + r, a polynomial for exp(r), and n into the exponent's bits.
static inline f32x4 vexp(f32x4 x) {
  x = wasm_f32x4_max(wasm_f32x4_min(x, ALL(87.f)), ALL(-87.f));
  const f32x4 n = wasm_f32x4_nearest(MUL(x, ALL(1.44269504f)));
  x = wasm_f32x4_sub(x, MUL(n, ALL(0.693359375f)));  // log 2 in two parts
  x = wasm_f32x4_sub(x, MUL(n, ALL(-2.12194440e-4f)));
  f32x4 r = ALL(1.f / 5040);
  r = ADD(MUL(r, x), ALL(1.f / 720));
  r = ADD(MUL(r, x), ALL(1.f / 120));
  r = ADD(MUL(r, x), ALL(1.f / 24));
  r = ADD(MUL(r, x), ALL(1.f / 6));
  r = ADD(MUL(r, x), ALL(.5f));
  r = ADD(MUL(r, x), ALL(1.f));
  r = ADD(MUL(r, x), ALL(1.f));
  const f32x4 bits = wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127));
  return MUL(r, wasm_i32x4_shl(bits, 23));
}

static inline f32x4 vsilu(f32x4 x) {
  return wasm_f32x4_div(x, ADD(ALL(1.f), vexp(wasm_f32x4_neg(x))));
}

// x / (1 + exp(-x)), in place; n is rounded up to a multiple of 4.
EXPORT void silu(f32 *x, int n) {
  for (int i = 0; i < n; i += 4) STORE(x + i, vsilu(LOAD(x + i)));
}

// a += b; n is rounded up to a multiple of 4.
EXPORT void add(f32 *a, const f32 *b, int n) {
  for (int i = 0; i < n; i += 4) STORE(a + i, ADD(LOAD(a + i), LOAD(b + i)));
}

// Group normalisation, then SiLU if `act`: x[H][W][C] into the middle of an out with `pad` pixels
// of border. scratch: 2 C floats.
EXPORT void norm(const f32 *x, const f32 *gain, const f32 *bias, f32 *out, f32 *scratch, int H,
                 int W, int C, int groups, int pad, int act) {
  const int n = H * W, size = C / groups;
  f32 *scale = scratch, *shift = scratch + C;
  for (int c = 0; c < C; c += 4) {
    f32x4 s = ALL(0.f);
    for (int i = 0; i < n; i++) s = ADD(s, LOAD(x + i * C + c));
    STORE(scale + c, s);
  }
  for (int g = 0; g < C; g += size) {
    f32 mean = 0;
    for (int c = g; c < g + size; c++) mean += scale[c];
    mean /= n * size;
    for (int c = g; c < g + size; c++) scale[c] = mean;
  }
  // The variance around the mean, in a second pass: E[x^2] - E[x]^2 would lose digits.
  for (int c = 0; c < C; c += 4) {
    const f32x4 m = LOAD(scale + c);
    f32x4 s = ALL(0.f);
    for (int i = 0; i < n; i++) {
      const f32x4 d = wasm_f32x4_sub(LOAD(x + i * C + c), m);
      s = ADD(s, MUL(d, d));
    }
    STORE(shift + c, s);
  }
  for (int g = 0; g < C; g += size) {
    f32 variance = 0;
    for (int c = g; c < g + size; c++) variance += shift[c];
    const f32 inverse = 1 / __builtin_sqrtf(variance / (n * size) + 1e-5f);
    for (int c = g; c < g + size; c++) {
      const f32 mean = scale[c];
      scale[c] = inverse * gain[c];
      shift[c] = bias[c] - mean * scale[c];
    }
  }
  for (int y = 0; y < H; y++) {
    for (int i = 0; i < W; i++) {
      const f32 *p = x + (y * W + i) * C;
      f32 *o = out + ((y + pad) * (W + 2 * pad) + i + pad) * C;
      for (int c = 0; c < C; c += 4) {
        const f32x4 a = ADD(MUL(LOAD(p + c), LOAD(scale + c)), LOAD(shift + c));
        STORE(o + c, act ? vsilu(a) : a);
      }
    }
  }
}

// Self-attention of N pixels with several heads: qkv[N][3 C] -> out[N][C].
// scratch: N floats, rounded up to a multiple of 4.
EXPORT void attention(const f32 *qkv, f32 *out, f32 *scratch, int N, int C, int heads) {
  const int D = C / heads;
  const f32 scale = 1 / __builtin_sqrtf((f32)D);
  for (int h = 0; h < C; h += D) {
    for (int i = 0; i < N; i++) {
      const f32 *q = qkv + i * 3 * C + h;
      f32 most = -1e30f, sum = 0;
      for (int j = 0; j < N; j++) {
        const f32 *k = qkv + (j * 3 + 1) * C + h;
        f32 dot = 0;
        int c = 0;
        f32x4 a = ALL(0.f);
        for (; c + 4 <= D; c += 4) a = ADD(a, MUL(LOAD(q + c), LOAD(k + c)));
        for (; c < D; c++) dot += q[c] * k[c];
        dot += wasm_f32x4_extract_lane(a, 0) + wasm_f32x4_extract_lane(a, 1) +
               wasm_f32x4_extract_lane(a, 2) + wasm_f32x4_extract_lane(a, 3);
        scratch[j] = dot *= scale;
        if (dot > most) most = dot;
      }
      for (int j = 0; j < N; j += 4)
        STORE(scratch + j, vexp(wasm_f32x4_sub(LOAD(scratch + j), ALL(most))));
      for (int j = 0; j < N; j++) sum += scratch[j];
      f32 *o = out + i * C + h;
      for (int c = 0; c < D; c++) o[c] = 0;
      for (int j = 0; j < N; j++) {
        const f32 *v = qkv + (j * 3 + 2) * C + h, share = scratch[j] / sum;
        int c = 0;
        for (; c + 4 <= D; c += 4) STORE(o + c, ADD(LOAD(o + c), MUL(ALL(share), LOAD(v + c))));
        for (; c < D; c++) o[c] += share * v[c];
      }
    }
  }
}

// Copy x[H >> up][W >> up][C] into an out whose pixels are `pixel` and rows `row` floats apart,
// each pixel 2^up times in both directions. Pads, joins channels, and enlarges.
EXPORT void copy(const f32 *x, f32 *out, int H, int W, int C, int pixel, int row, int up) {
  for (int y = 0; y < H; y++) {
    for (int i = 0; i < W; i++) {
      const f32 *p = x + ((y >> up) * (W >> up) + (i >> up)) * C;
      f32 *o = out + y * row + i * pixel;
      int c = 0;
      for (; c + 4 <= C; c += 4) STORE(o + c, LOAD(p + c));
      for (; c < C; c++) o[c] = p[c];
    }
  }
}
