// The elements of the cells of a cache as floats, and how many of them are computed together. See attend_task.h.
#pragma once

#include "../simd/simd.h"
#include "attend_task.h"

namespace adaptive {
namespace {

// Sums that are kept in registers at a time, of 16 lanes each (more would not fit beside the operands), and queries
// that share what is loaded.
#if defined(ADAPTIVE_ISA_avx512vnni)
constexpr int kSums = 16, kRows = 8;
#elif defined(ADAPTIVE_ISA_plain)
constexpr int kSums = 1, kRows = 1;
#else
constexpr int kSums = 4, kRows = 4;
#endif

// Registers of a row that are computed together with those of other rows.
constexpr int columns_of(int rows) { return rows >= kSums ? 1 : kSums / rows > 4 ? 4 : kSums / rows; }

template <CacheType type>
struct Elements;

template <>
struct Elements<CacheType::fp32> {
  static ALWAYS_INLINE F16 load16(const uint8_t* at) { return load(reinterpret_cast<const float*>(at)); }
  static constexpr int64_t bytes = 4;
};

template <>
struct Elements<CacheType::fp16> {
  static ALWAYS_INLINE F16 load16(const uint8_t* at) { return load_half(reinterpret_cast<const uint16_t*>(at)); }
  static constexpr int64_t bytes = 2;
};

template <>
struct Elements<CacheType::int8> {
  static ALWAYS_INLINE F16 load16(const uint8_t* at) {
    return to_float(load_bytes(reinterpret_cast<const int8_t*>(at)));
  }
  static constexpr int64_t bytes = 1;
};

// Load fewer than 16 elements, zeros behind them.
template <CacheType type>
ALWAYS_INLINE F16 load_some(const uint8_t* at, int64_t number) {
  if (type == CacheType::fp32) return load_first(reinterpret_cast<const float*>(at), number);
  uint8_t padded[16 * Elements<type>::bytes] = {};
  __builtin_memcpy(padded, at, static_cast<size_t>(number * Elements<type>::bytes));
  return Elements<type>::load16(padded);
}

ALWAYS_INLINE float load_float(const uint8_t* at) {
  float value;
  __builtin_memcpy(&value, at, sizeof(value));
  return value;
}

}  // namespace
}  // namespace adaptive
