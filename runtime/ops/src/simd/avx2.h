// The lanes of simd.h in two 256-bit registers, with the byte products of AVX2.
#pragma once
#include <immintrin.h>

namespace adaptive {
namespace {

struct F16 {
  __m256 low, high;
};
struct I16 {
  __m256i low, high;
};

// Bits set in the first n of 8 lanes.
ALWAYS_INLINE __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), lane);
}
ALWAYS_INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
ALWAYS_INLINE __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
ALWAYS_INLINE __m128i load_64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

ALWAYS_INLINE F16 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ALWAYS_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ALWAYS_INLINE F16 load_first(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
ALWAYS_INLINE void store(float* p, F16 a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
ALWAYS_INLINE void store_first(float* p, F16 a, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.low);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.high);
}
ALWAYS_INLINE F16 load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
ALWAYS_INLINE void store_half(uint16_t* p, F16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}
ALWAYS_INLINE F16 load_bf16(const uint16_t* p) {
  const __m256i low = _mm256_cvtepu16_epi32(load_128(p)), high = _mm256_cvtepu16_epi32(load_128(p + 8));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}

ALWAYS_INLINE F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
ALWAYS_INLINE F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
ALWAYS_INLINE F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
ALWAYS_INLINE F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
ALWAYS_INLINE F16 fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
ALWAYS_INLINE F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
ALWAYS_INLINE F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
ALWAYS_INLINE F16 abs(F16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
ALWAYS_INLINE F16 sqrt(F16 a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }

ALWAYS_INLINE I16 all_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
ALWAYS_INLINE I16 load_bytes(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(load_64(p)), _mm256_cvtepi8_epi32(load_64(p + 8))};
}
ALWAYS_INLINE I16 load_bytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(load_64(p)), _mm256_cvtepu8_epi32(load_64(p + 8))};
}
ALWAYS_INLINE void store_bytes(int8_t* p, I16 a) {
  // the lowest byte of each lane, as a cast would keep it
  const __m256i lowest = _mm256_set1_epi32(0xFF);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(a.low, lowest), _mm256_and_si256(a.high, lowest));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
ALWAYS_INLINE I16 operator+(I16 a, I16 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
ALWAYS_INLINE I16 operator-(I16 a, I16 b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
ALWAYS_INLINE I16 max(I16 a, I16 b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
template <int n>
ALWAYS_INLINE I16 shift_left(I16 a) {
  return {_mm256_slli_epi32(a.low, n), _mm256_slli_epi32(a.high, n)};
}
ALWAYS_INLINE I16 bits(F16 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
ALWAYS_INLINE F16 floats(I16 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
ALWAYS_INLINE I16 to_int(F16 a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
ALWAYS_INLINE F16 to_float(I16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

ALWAYS_INLINE float sum(F16 a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
ALWAYS_INLINE int32_t sum(I16 a) {
  const __m256i eight = _mm256_add_epi32(a.low, a.high);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
ALWAYS_INLINE float max_lane(F16 a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
ALWAYS_INLINE int32_t max_lane(I16 a) {
  const __m256i eight = _mm256_max_epi32(a.low, a.high);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

constexpr int kFloatRows = 6, kFloatLanes = 1, kIntRows = 6, kIntLanes = 1;
constexpr int kInt4Rows = kIntRows;

ALWAYS_INLINE __m256i four(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// The instruction multiplies unsigned by signed bytes and adds pairs in 16 bits, where 255 * 127 * 2 does not fit. So
// it gets |q| and the activation with the sign of q: 127 * 127 * 2 fits.
struct Int8Products {
  struct Weights {
    __m256i low, high;  // q
  };
  I16 sum;

  static ALWAYS_INLINE Int8Products start(int32_t) { return {all_int(0)}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) {
    const __m256i offset = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(load_256(p), offset), _mm256_xor_si256(load_256(p + 32), offset)};
  }
  static ALWAYS_INLINE __m256i products(__m256i q, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  ALWAYS_INLINE void add(Weights w, __m256i x) { sum = sum + I16{products(w.low, x), products(w.high, x)}; }
  ALWAYS_INLINE F16 finish() const { return to_float(sum); }
};

// Sums in 16 bits: a block adds 8 pairs of products to one, each at most 15 * 127 * 2.
template <bool SHARED>
struct Int4Products {
  struct Weights {
    __m256i low[2], high[2];  // the low and the high halves, of the first and of the last 8 lanes
  };
  __m256i first, last;

  static ALWAYS_INLINE Int4Products start() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) {
    const __m256i half = _mm256_set1_epi8(15), a = load_256(p), b = load_256(p + 32);
    return {{_mm256_and_si256(a, half), _mm256_and_si256(b, half)},
            {_mm256_and_si256(_mm256_srli_epi16(a, 4), half), _mm256_and_si256(_mm256_srli_epi16(b, 4), half)}};
  }
  ALWAYS_INLINE void add(Weights w, __m256i x_low, __m256i x_high) {
    first = _mm256_add_epi16(first, _mm256_maddubs_epi16(w.low[0], x_low));
    first = _mm256_add_epi16(first, _mm256_maddubs_epi16(w.high[0], x_high));
    last = _mm256_add_epi16(last, _mm256_maddubs_epi16(w.low[1], x_low));
    last = _mm256_add_epi16(last, _mm256_maddubs_epi16(w.high[1], x_high));
  }
  ALWAYS_INLINE F16 finish(I16 zeros, int32_t activation_sum) const {
    const __m256i sixteen = _mm256_set1_epi16(16), minus = _mm256_set1_epi32(-activation_sum & 0xFFFF);
    const I16 products{_mm256_madd_epi16(first, sixteen), _mm256_madd_epi16(last, sixteen)};
    return to_float(products + I16{_mm256_madd_epi16(zeros.low, minus), _mm256_madd_epi16(zeros.high, minus)});
  }
};

}  // namespace
}  // namespace adaptive
