// The lanes of simd.h in portable C++: correct everywhere, and what the others are compared with.
#pragma once

namespace adaptive {
namespace {

struct F16 {
  float v[16];
};
struct I16 {
  int32_t v[16];
};

template <class Function>
ALWAYS_INLINE F16 each(Function f) {
  F16 r;
  for (int i = 0; i < 16; i++) r.v[i] = f(i);
  return r;
}
template <class Function>
ALWAYS_INLINE I16 each_int(Function f) {
  I16 r;
  for (int i = 0; i < 16; i++) r.v[i] = f(i);
  return r;
}
template <class To, class From>
ALWAYS_INLINE To bit_cast(From from) {
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// a b + c, rounded once. Without an instruction for it: the product of two floats is exact in double, the sum is
// rounded to odd there (its last bit is set where something was lost), and so the second rounding is right.
ALWAYS_INLINE float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  const double product = static_cast<double>(a) * b, sum = product + c;
  const double added = sum - product, lost = (product - (sum - added)) + (c - added);
  const int64_t pattern = bit_cast<int64_t>(sum);
  const int64_t step = (lost > 0) == (sum > 0) ? 1 : -1;
  const bool inexact = (lost > 0 || lost < 0) && !(pattern & 1);
  return static_cast<float>(bit_cast<double>(inexact ? pattern + step : pattern));
#endif
}

ALWAYS_INLINE float half_to_float(uint16_t half) {
  const uint32_t magnitude = half & 0x7FFF, sign = static_cast<uint32_t>(half & 0x8000) << 16;
  if (magnitude >= 0x7C00) return bit_cast<float>(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
  // as a float of exponent -126 and up, then scaled: a denormal float16 is a normal float32
  const float value = bit_cast<float>(magnitude << 13) * 0x1p112f;
  return bit_cast<float>(sign | bit_cast<uint32_t>(value));
}
ALWAYS_INLINE uint16_t float_to_half(float x) {
  const uint32_t pattern = bit_cast<uint32_t>(x), sign = pattern >> 16 & 0x8000, magnitude = pattern & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {  // below 2^-14: the addition rounds to a multiple of 2^-24
    const float value = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(value) - 0x3F000000));
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

ALWAYS_INLINE F16 all(float x) {
  return each([&](int) { return x; });
}
ALWAYS_INLINE F16 load(const float* p) {
  return each([&](int i) { return p[i]; });
}
ALWAYS_INLINE F16 load_first(const float* p, int64_t n) {
  return each([&](int i) { return i < n ? p[i] : 0.0f; });
}
ALWAYS_INLINE void store(float* p, F16 a) { __builtin_memcpy(p, a.v, sizeof(a.v)); }
ALWAYS_INLINE void store_first(float* p, F16 a, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = a.v[i];
}
ALWAYS_INLINE F16 load_half(const uint16_t* p) {
  return each([&](int i) { return half_to_float(p[i]); });
}
ALWAYS_INLINE void store_half(uint16_t* p, F16 a) {
  for (int i = 0; i < 16; i++) p[i] = float_to_half(a.v[i]);
}
ALWAYS_INLINE F16 load_bf16(const uint16_t* p) {
  return each([&](int i) { return bit_cast<float>(static_cast<uint32_t>(p[i]) << 16); });
}

ALWAYS_INLINE F16 operator+(F16 a, F16 b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
ALWAYS_INLINE F16 operator-(F16 a, F16 b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
ALWAYS_INLINE F16 operator*(F16 a, F16 b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
ALWAYS_INLINE F16 operator/(F16 a, F16 b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
ALWAYS_INLINE F16 fma(F16 a, F16 b, F16 c) {
  return each([&](int i) { return fused(a.v[i], b.v[i], c.v[i]); });
}
ALWAYS_INLINE F16 min(F16 a, F16 b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
ALWAYS_INLINE F16 max(F16 a, F16 b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
ALWAYS_INLINE F16 abs(F16 a) {
  return each([&](int i) { return __builtin_fabsf(a.v[i]); });
}
ALWAYS_INLINE F16 sqrt(F16 a) {
  return each([&](int i) { return __builtin_sqrtf(a.v[i]); });
}

ALWAYS_INLINE I16 all_int(int32_t x) {
  return each_int([&](int) { return x; });
}
ALWAYS_INLINE I16 load_bytes(const int8_t* p) {
  return each_int([&](int i) { return p[i]; });
}
ALWAYS_INLINE I16 load_bytes(const uint8_t* p) {
  return each_int([&](int i) { return p[i]; });
}
ALWAYS_INLINE void store_bytes(int8_t* p, I16 a) {
  for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(a.v[i]);
}
ALWAYS_INLINE int32_t wrapping(uint32_t x) { return static_cast<int32_t>(x); }
ALWAYS_INLINE I16 operator+(I16 a, I16 b) {
  return each_int([&](int i) { return wrapping(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i])); });
}
ALWAYS_INLINE I16 operator-(I16 a, I16 b) {
  return each_int([&](int i) { return wrapping(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i])); });
}
ALWAYS_INLINE I16 max(I16 a, I16 b) {
  return each_int([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <int n>
ALWAYS_INLINE I16 shift_left(I16 a) {
  return each_int([&](int i) { return wrapping(static_cast<uint32_t>(a.v[i]) << n); });
}
ALWAYS_INLINE I16 bits(F16 a) { return bit_cast<I16>(a); }
ALWAYS_INLINE F16 floats(I16 a) { return bit_cast<F16>(a); }
ALWAYS_INLINE I16 to_int(F16 a) {
  // the low bits of x + 1.5 * 2^23 are x rounded to nearest even
  return each_int([&](int i) {
    return wrapping(bit_cast<uint32_t>(a.v[i] + 12582912.0f) - bit_cast<uint32_t>(12582912.0f));
  });
}
ALWAYS_INLINE F16 to_float(I16 a) {
  return each([&](int i) { return static_cast<float>(a.v[i]); });
}

ALWAYS_INLINE float sum(F16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
  return a.v[0];
}
ALWAYS_INLINE int32_t sum(I16 a) {
  int32_t r = 0;
  for (int i = 0; i < 16; i++) r += a.v[i];
  return r;
}
ALWAYS_INLINE float max_lane(F16 a) {
  float r = a.v[0];
  for (int i = 1; i < 16; i++) r = r > a.v[i] ? r : a.v[i];
  return r;
}
ALWAYS_INLINE int32_t max_lane(I16 a) {
  int32_t r = a.v[0];
  for (int i = 1; i < 16; i++) r = r > a.v[i] ? r : a.v[i];
  return r;
}

constexpr int kFloatRows = 4, kFloatLanes = 1, kIntRows = 4, kIntLanes = 1;
constexpr int kInt4Rows = kIntRows;

struct FourActivations {
  const int8_t* p;
};
ALWAYS_INLINE FourActivations four(const int8_t* p) { return {p}; }

struct Int8Products {
  using Weights = const uint8_t*;
  I16 sum;

  static ALWAYS_INLINE Int8Products start(int32_t activation_sum) { return {all_int(-128 * activation_sum)}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) { return p; }
  ALWAYS_INLINE void add(Weights w, FourActivations x) {
    for (int i = 0; i < 16; i++)
      for (int t = 0; t < 4; t++) sum.v[i] += w[4 * i + t] * x.p[t];
  }
  ALWAYS_INLINE F16 finish() const { return to_float(sum); }
};

template <bool SHARED>
struct Int4Products {
  using Weights = const uint8_t*;
  I16 sum;

  static ALWAYS_INLINE Int4Products start() { return {all_int(0)}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) { return p; }
  ALWAYS_INLINE void add(Weights w, FourActivations low, FourActivations high) {
    for (int i = 0; i < 16; i++)
      for (int t = 0; t < 4; t++) sum.v[i] += (w[4 * i + t] & 15) * low.p[t] + (w[4 * i + t] >> 4) * high.p[t];
  }
  ALWAYS_INLINE F16 finish(I16 zeros, int32_t activation_sum) const {
    return each([&](int i) { return static_cast<float>(16 * sum.v[i] - zeros.v[i] * activation_sum); });
  }
};

}  // namespace
}  // namespace adaptive
