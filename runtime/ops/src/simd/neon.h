// The lanes of simd.h in four 128-bit registers of arm64, with its byte products where it has them (dotprod).
#pragma once
#include <arm_neon.h>

namespace adaptive {
namespace {

struct F16 {
  float32x4_t v[4];
};
struct I16 {
  int32x4_t v[4];
};

template <class Function>
ALWAYS_INLINE F16 each(Function f) {
  return {{f(0), f(1), f(2), f(3)}};
}
template <class Function>
ALWAYS_INLINE I16 each_int(Function f) {
  return {{f(0), f(1), f(2), f(3)}};
}

ALWAYS_INLINE F16 all(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return {{v, v, v, v}};
}
ALWAYS_INLINE F16 load(const float* p) {
  return each([&](int i) { return vld1q_f32(p + 4 * i); });
}
ALWAYS_INLINE void store(float* p, F16 a) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.v[i]);
}
ALWAYS_INLINE F16 load_first(const float* p, int64_t n) {
  float lanes[16] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
ALWAYS_INLINE void store_first(float* p, F16 a, int64_t n) {
  float lanes[16];
  store(lanes, a);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}
ALWAYS_INLINE F16 load_half(const uint16_t* p) {
  return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
ALWAYS_INLINE void store_half(uint16_t* p, F16 a) {
  for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
ALWAYS_INLINE F16 load_bf16(const uint16_t* p) {
  return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}

ALWAYS_INLINE F16 operator+(F16 a, F16 b) {
  return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
ALWAYS_INLINE F16 operator-(F16 a, F16 b) {
  return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
ALWAYS_INLINE F16 operator*(F16 a, F16 b) {
  return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
ALWAYS_INLINE F16 operator/(F16 a, F16 b) {
  return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
ALWAYS_INLINE F16 fma(F16 a, F16 b, F16 c) {
  return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// The instructions for min and max return a NaN where either is one; these return b, as on x86.
ALWAYS_INLINE F16 min(F16 a, F16 b) {
  return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
ALWAYS_INLINE F16 max(F16 a, F16 b) {
  return each([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
ALWAYS_INLINE F16 abs(F16 a) {
  return each([&](int i) { return vabsq_f32(a.v[i]); });
}
ALWAYS_INLINE F16 sqrt(F16 a) {
  return each([&](int i) { return vsqrtq_f32(a.v[i]); });
}

ALWAYS_INLINE I16 all_int(int32_t x) {
  const int32x4_t v = vdupq_n_s32(x);
  return {{v, v, v, v}};
}
ALWAYS_INLINE I16 load_bytes(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
           vmovl_s16(vget_high_s16(high))}};
}
ALWAYS_INLINE I16 load_bytes(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
  const int16x8_t high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)));
  return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
           vmovl_s16(vget_high_s16(high))}};
}
ALWAYS_INLINE void store_bytes(int8_t* p, I16 a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
ALWAYS_INLINE I16 operator+(I16 a, I16 b) {
  return each_int([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
ALWAYS_INLINE I16 operator-(I16 a, I16 b) {
  return each_int([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
ALWAYS_INLINE I16 max(I16 a, I16 b) {
  return each_int([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); });
}
template <int n>
ALWAYS_INLINE I16 shift_left(I16 a) {
  return each_int([&](int i) { return vshlq_n_s32(a.v[i], n); });
}
ALWAYS_INLINE I16 bits(F16 a) {
  return each_int([&](int i) { return vreinterpretq_s32_f32(a.v[i]); });
}
ALWAYS_INLINE F16 floats(I16 a) {
  return each([&](int i) { return vreinterpretq_f32_s32(a.v[i]); });
}
ALWAYS_INLINE I16 to_int(F16 a) {
  return each_int([&](int i) { return vcvtnq_s32_f32(a.v[i]); });
}
ALWAYS_INLINE F16 to_float(I16 a) {
  return each([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}

ALWAYS_INLINE float sum(F16 a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
ALWAYS_INLINE int32_t sum(I16 a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
ALWAYS_INLINE float max_lane(F16 a) {
  float lanes[16];
  store(lanes, a);
  float r = lanes[0];
  for (int i = 1; i < 16; i++) r = r > lanes[i] ? r : lanes[i];
  return r;
}
ALWAYS_INLINE int32_t max_lane(I16 a) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}

constexpr int kFloatRows = 6, kFloatLanes = 1, kIntRows = 3, kIntLanes = 1;
constexpr int kInt4Rows = kIntRows;

ALWAYS_INLINE int8x16_t four(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

// sum[i] += the products of bytes 4 i to 4 i + 3. Two products fit 16 bits, since no byte is -128.
ALWAYS_INLINE int32x4_t dot_bytes(int32x4_t sum, int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, w, x);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
  return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}

struct Int8Products {
  struct Weights {
    int8x16_t v[4];  // q
  };
  I16 sum;

  static ALWAYS_INLINE Int8Products start(int32_t) { return {all_int(0)}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) {
    const uint8x16_t offset = vdupq_n_u8(128);
    Weights w;
    for (int i = 0; i < 4; i++) w.v[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), offset));
    return w;
  }
  ALWAYS_INLINE void add(const Weights& w, int8x16_t x) {
    for (int i = 0; i < 4; i++) sum.v[i] = dot_bytes(sum.v[i], w.v[i], x);
  }
  ALWAYS_INLINE F16 finish() const { return to_float(sum); }
};

template <bool SHARED>
struct Int4Products {
  struct Weights {
    int8x16_t low[4], high[4];
  };
  I16 sum;

  static ALWAYS_INLINE Int4Products start() { return {all_int(0)}; }
  static ALWAYS_INLINE Weights load(const uint8_t* p) {
    Weights w;
    for (int i = 0; i < 4; i++) {
      const uint8x16_t v = vld1q_u8(p + 16 * i);
      w.low[i] = vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
      w.high[i] = vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
    }
    return w;
  }
  ALWAYS_INLINE void add(const Weights& w, int8x16_t x_low, int8x16_t x_high) {
    for (int i = 0; i < 4; i++) sum.v[i] = dot_bytes(dot_bytes(sum.v[i], w.low[i], x_low), w.high[i], x_high);
  }
  ALWAYS_INLINE F16 finish(I16 zeros, int32_t activation_sum) const {
    const int32x4_t minus = vdupq_n_s32(-activation_sum);
    return each([&](int i) { return vcvtq_f32_s32(vmlaq_s32(vshlq_n_s32(sum.v[i], 4), zeros.v[i], minus)); });
  }
};

}  // namespace
}  // namespace adaptive
