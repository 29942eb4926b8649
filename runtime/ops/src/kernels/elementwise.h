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

void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t n) {
  F16 sums = zero();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) sums = sums + load(x + i);
  if (i < n) sums = sums + load_first(x + i, n - i);
  const F16 mean = all(sum(sums) / static_cast<float>(n));
  for (i = 0; i + 16 <= n; i += 16) store(out + i, load(x + i) - mean);
  if (i < n) store_first(out + i, load_first(x + i, n - i) - mean, n - i);
  rms_norm(out, weight, eps, out, n);
  for (i = 0; i + 16 <= n; i += 16) store(out + i, load(out + i) + load(bias + i));
  if (i < n) store_first(out + i, load_first(out + i, n - i) + load_first(bias + i, n - i), n - i);
}

void softcap(float* x, float cap, int64_t n) {
  const F16 c = all(cap);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(x + i, c * tanh(load(x + i) / c));
  if (i < n) store_first(x + i, c * tanh(load_first(x + i, n - i) / c), n - i);
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

// The functions of `Activation`. A NaN stays one: `max` returns its second argument where one is NaN.
template <Activation activation>
ALWAYS_INLINE F16 act(F16 x) {
  if constexpr (activation == Activation::silu) return x / (all(1.0f) + exp(zero() - x));
  if constexpr (activation == Activation::relu) return max(zero(), x);
  if constexpr (activation == Activation::gelu_tanh) {
    // x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    const F16 u = x * (all(0.0713548163f) * x * x + all(1.59576912f));  // 2u
    return x / (all(1.0f) + exp(zero() - u));
  }
  // max(x, 0) - |x| q, q = 1 - Phi(|x|) = erfc(|x| / sqrt 2) / 2 by Abramowitz and Stegun 7.1.26, exact to 1e-7
  const F16 size = abs(x);
  const F16 t = all(1.0f) / fma(all(0.231641888f), size, all(1.0f));
  F16 p = fma(all(0.5307027145f), t, all(-0.7265760135f));
  p = fma(p, t, all(0.7107068705f));
  p = fma(p, t, all(-0.142248368f));
  p = fma(p, t, all(0.127414796f));
  const F16 q = p * t * exp(all(-0.5f) * x * x);
  return max(zero(), x) - size * q;
}

template <Activation activation>
ALWAYS_INLINE void activate_as(const float* gate, const float* up, float factor, float* out, int64_t n) {
  const F16 f = all(factor);
  int64_t i = 0;
  if (up == nullptr) {
    for (; i + 16 <= n; i += 16) store(out + i, act<activation>(load(gate + i)) * f);
    if (i < n) store_first(out + i, act<activation>(load_first(gate + i, n - i)) * f, n - i);
    return;
  }
  for (; i + 16 <= n; i += 16) store(out + i, act<activation>(load(gate + i)) * load(up + i) * f);
  if (i < n) store_first(out + i, act<activation>(load_first(gate + i, n - i)) * load_first(up + i, n - i) * f, n - i);
}

void activate(Activation activation, const float* gate, const float* up, float factor, float* out, int64_t n) {
  switch (activation) {
    case Activation::silu: return activate_as<Activation::silu>(gate, up, factor, out, n);
    case Activation::gelu: return activate_as<Activation::gelu>(gate, up, factor, out, n);
    case Activation::gelu_tanh: return activate_as<Activation::gelu_tanh>(gate, up, factor, out, n);
    case Activation::relu: return activate_as<Activation::relu>(gate, up, factor, out, n);
  }
}

void sigmoid(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(x + i, all(1.0f) / (all(1.0f) + exp(zero() - load(x + i))));
  if (i < n) store_first(x + i, all(1.0f) / (all(1.0f) + exp(zero() - load_first(x + i, n - i))), n - i);
}

void exponential(float* x, float factor, int64_t n) {
  const F16 f = all(factor);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(x + i, exp(f * load(x + i)));
  if (i < n) store_first(x + i, exp(f * load_first(x + i, n - i)), n - i);
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
