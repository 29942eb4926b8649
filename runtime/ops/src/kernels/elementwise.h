// Kernels over vectors of floats.
//
// A vector whose length is no multiple of 16 ends in a part of n < 16 lanes; the lanes behind it hold zeros.
#pragma once
#include "../simd/simd.h"
#include "kernels.h"

namespace adaptive {
namespace {

float dot(const float* a, const float* b, int64_t n) {
  // four chains, so that an addition need not wait for the one before it
  F16 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (int c = 0; c < 4; c++) sums[c] = fma(load(a + i + 16 * c), load(b + i + 16 * c), sums[c]);
  for (; i + 16 <= n; i += 16) sums[0] = fma(load(a + i), load(b + i), sums[0]);
  if (i < n) sums[1] = fma(load_first(a + i, n - i), load_first(b + i, n - i), sums[1]);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t n) {
  const float mean = dot(x, x, n) / static_cast<float>(n);
  const F16 factor = all(1.0f) / sqrt(all(mean + eps));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, load(x + i) * factor * load(weight + i));
  if (i < n) store_first(out + i, load_first(x + i, n - i) * factor * load_first(weight + i, n - i), n - i);
}

void rotate(float* head, const float* cos, const float* sin, int64_t components) {
  const int64_t n = components / 2;
  float* other = head + n;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F16 a = load(head + i), b = load(other + i), c = load(cos + i), s = load(sin + i);
    store(head + i, a * c - b * s);
    store(other + i, b * c + a * s);
  }
  if (i < n) {
    const F16 a = load_first(head + i, n - i), b = load_first(other + i, n - i);
    const F16 c = load_first(cos + i, n - i), s = load_first(sin + i, n - i);
    store_first(head + i, a * c - b * s, n - i);
    store_first(other + i, b * c + a * s, n - i);
  }
}

void add_scaled(float* y, const float* x, float factor, int64_t n) {
  const F16 f = all(factor);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, fma(f, load(x + i), load(y + i)));
  if (i < n) store_first(y + i, fma(f, load_first(x + i, n - i), load_first(y + i, n - i)), n - i);
}

ALWAYS_INLINE F16 silu(F16 x) { return x / (all(1.0f) + exp(zero() - x)); }

void silu_product(const float* gate, const float* up, float factor, float* out, int64_t n) {
  const F16 f = all(factor);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, silu(load(gate + i)) * load(up + i) * f);
  if (i < n) store_first(out + i, silu(load_first(gate + i, n - i)) * load_first(up + i, n - i) * f, n - i);
}

float softmax(float* x, int64_t n) {
  if (n <= 0) return 0.0f;
  F16 most = all(x[0]);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) most = max(load(x + i), most);
  float greatest = max_lane(most);
  for (; i < n; i++) greatest = x[i] > greatest ? x[i] : greatest;
  const F16 shift = all(greatest);
  F16 sums = zero();
  for (i = 0; i + 16 <= n; i += 16) {
    const F16 power = exp(load(x + i) - shift);
    store(x + i, power);
    sums = sums + power;
  }
  if (i < n) {
    store_first(x + i, exp(load_first(x + i, n - i) - shift), n - i);
    sums = sums + load_first(x + i, n - i);
  }
  return sum(sums);
}

}  // namespace
}  // namespace adaptive
