// The lanes of simd.h in one 512-bit register, with the byte products of AVX-512 VNNI.
#pragma once
#include <immintrin.h>

namespace adaptive {
namespace {

struct F16 {
  __m512 v;
};
struct I16 {
  __m512i v;
};

ALWAYS_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

ALWAYS_INLINE F16 all(float x) { return {_mm512_set1_ps(x)}; }
ALWAYS_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
ALWAYS_INLINE F16 load_first(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
ALWAYS_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
ALWAYS_INLINE void store_first(float* p, F16 a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
ALWAYS_INLINE F16 load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
ALWAYS_INLINE void store_half(uint16_t* p, F16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
ALWAYS_INLINE F16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

ALWAYS_INLINE F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
ALWAYS_INLINE F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
ALWAYS_INLINE F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
ALWAYS_INLINE F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
ALWAYS_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
ALWAYS_INLINE F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
ALWAYS_INLINE F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
ALWAYS_INLINE F16 abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
ALWAYS_INLINE F16 sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }

ALWAYS_INLINE I16 all_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
ALWAYS_INLINE I16 load_bytes(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
ALWAYS_INLINE I16 load_bytes(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
ALWAYS_INLINE void store_bytes(int8_t* p, I16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
ALWAYS_INLINE I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
ALWAYS_INLINE I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
ALWAYS_INLINE I16 max(I16 a, I16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int n>
ALWAYS_INLINE I16 shift_left(I16 a) {
  return {_mm512_slli_epi32(a.v, n)};
}
ALWAYS_INLINE I16 bits(F16 a) { return {_mm512_castps_si512(a.v)}; }
ALWAYS_INLINE F16 floats(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
ALWAYS_INLINE I16 to_int(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }
ALWAYS_INLINE F16 to_float(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }

ALWAYS_INLINE float sum(F16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
ALWAYS_INLINE int32_t sum(I16 a) { return _mm512_reduce_add_epi32(a.v); }
ALWAYS_INLINE float max_lane(F16 a) { return _mm512_reduce_max_ps(a.v); }
ALWAYS_INLINE int32_t max_lane(I16 a) { return _mm512_reduce_max_epi32(a.v); }

constexpr int kFloatRows = 6, kFloatLanes = 4, kIntRows = 4, kIntLanes = 4;
constexpr int kInt4Rows = 3;  // both halves of its weights are in registers: 4 rows take 1.1 times as long

ALWAYS_INLINE I16 four(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return all_int(word);
}

// Unsigned weights times signed activations; the offset of 128 is taken off at the start.
struct Int8Products {
  struct Weights {
    __m512i v;
  };
  __m512i sum;

  static ALWAYS_INLINE Int8Products start(int32_t activation_sum) { return {_mm512_set1_epi32(-128 * activation_sum)}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  ALWAYS_INLINE void add(Weights w, I16 x) { sum = _mm512_dpbusd_epi32(sum, w.v, x.v); }
  ALWAYS_INLINE F16 finish() const { return {_mm512_cvtepi32_ps(sum)}; }
};

// 16 sum - zeros * activation_sum, as floats
ALWAYS_INLINE F16 less_zeros(__m512i sixteen_sum, I16 zeros, int32_t activation_sum) {
  const __m512i minus = _mm512_set1_epi32(-activation_sum & 0xFFFF);
  return {_mm512_cvtepi32_ps(_mm512_dpwssd_epi32(sixteen_sum, zeros.v, minus))};
}

template <bool SHARED>
struct Int4Products {
  struct Weights {
    __m512i low, high;
  };
  __m512i sum;

  static ALWAYS_INLINE Int4Products start() { return {_mm512_setzero_si512()}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) {
    const __m512i v = _mm512_loadu_si512(p), half = _mm512_set1_epi8(15);
    return {_mm512_and_si512(v, half), _mm512_and_si512(_mm512_srli_epi16(v, 4), half)};
  }
  ALWAYS_INLINE void add(Weights w, I16 x_low, I16 x_high) {
    sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, w.low, x_low.v), w.high, x_high.v);
  }
  ALWAYS_INLINE F16 finish(I16 zeros, int32_t activation_sum) const {
    return less_zeros(_mm512_slli_epi32(sum, 4), zeros, activation_sum);
  }
};

// For one row: the high halves are multiplied where they are, as sixteen times their value, so no weight is shifted.
template <>
struct Int4Products<false> {
  struct Weights {
    __m512i low, sixteen_high;
  };
  __m512i low, sixteen_high;

  static ALWAYS_INLINE Int4Products start() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) {
    const __m512i v = _mm512_loadu_si512(p), half = _mm512_set1_epi8(15);
    return {_mm512_and_si512(v, half), _mm512_andnot_si512(half, v)};
  }
  ALWAYS_INLINE void add(Weights w, I16 x_low, I16 x_high) {
    low = _mm512_dpbusd_epi32(low, w.low, x_low.v);
    sixteen_high = _mm512_dpbusd_epi32(sixteen_high, w.sixteen_high, x_high.v);
  }
  ALWAYS_INLINE F16 finish(I16 zeros, int32_t activation_sum) const {
    return less_zeros(_mm512_add_epi32(_mm512_slli_epi32(low, 4), sixteen_high), zeros, activation_sum);
  }
};

}  // namespace
}  // namespace adaptive
