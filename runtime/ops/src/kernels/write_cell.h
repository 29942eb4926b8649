// The writing of a key and a value to a cell of the cache, in the layout of attend_task.h.
#pragma once

#include "../simd/simd.h"
#include "attend_task.h"

namespace adaptive {
namespace {

// Copy W elements of a key to component w = 0, 1, ... of its place in a block of keys.
template <typename T>
ALWAYS_INLINE void scatter(const T* key, int64_t head_dim, T* into, int64_t cells) {
  for (int64_t w = 0; w < head_dim; w++) into[w * cells] = key[w];
}

// Load 16 floats, or fewer with zeros behind them.
ALWAYS_INLINE F16 load_floats(const float* x, int64_t number) { return number < 16 ? load_first(x, number) : load(x); }

// Quantise n numbers to -127..127 in steps of the float that is returned.
ALWAYS_INLINE float quantize_head(const float* x, int64_t n, int8_t* into) {
  F16 sizes = zero();
  for (int64_t w = 0; w < n; w += 16) sizes = max(abs(load_floats(x + w, n - w)), sizes);
  const float most = max_lane(sizes);
  if (!(most > 1e-30f)) {  // 127 / most could be infinite
    __builtin_memset(into, 0, static_cast<size_t>(n));
    return 0;
  }
  const F16 steps = all(127.0f / most);
  for (int64_t w = 0; w < n; w += 16) {
    int8_t codes[16];
    store_bytes(codes, to_int(load_floats(x + w, n - w) * steps));
    __builtin_memcpy(into + w, codes, static_cast<size_t>(n - w < 16 ? n - w : 16));
  }
  return most / 127.0f;
}

// Write the key and the value (W each) of one cell.
void write_cell(const CacheHead& cache, int64_t cell, const float* key, const float* value) {
  const int64_t head_dim = cache.head_dim, bytes = cell_bytes(cache.type, head_dim), first = cell / 16 * 16;
  const int64_t cells = cache.capacity - first < 16 ? cache.capacity - first : 16;
  uint8_t* block = cache.keys + first * bytes;
  uint8_t* row = cache.values + cell * bytes;
  const int64_t lane = cell - first;
  if (cache.type == CacheType::fp32) {
    scatter(key, head_dim, reinterpret_cast<float*>(block) + lane, cells);
    __builtin_memcpy(row, value, static_cast<size_t>(bytes));
  } else if (cache.type == CacheType::fp16) {
    for (int64_t w = 0; w < head_dim; w += 16) {
      const int64_t number = head_dim - w < 16 ? head_dim - w : 16;
      uint16_t halves[16];
      store_half(halves, load_floats(key + w, number));
      scatter(halves, number, reinterpret_cast<uint16_t*>(block) + w * cells + lane, cells);
      store_half(halves, load_floats(value + w, number));
      __builtin_memcpy(row + 2 * w, halves, static_cast<size_t>(2 * number));
    }
  } else {
    int8_t* codes = reinterpret_cast<int8_t*>(row);
    float scale = quantize_head(key, head_dim, codes);  // the row of values is free until they are written
    scatter(codes, head_dim, reinterpret_cast<int8_t*>(block) + lane, cells);
    __builtin_memcpy(block + cells * head_dim + lane * 4, &scale, sizeof(scale));
    scale = quantize_head(value, head_dim, codes);
    __builtin_memcpy(row + head_dim, &scale, sizeof(scale));
  }
}

}  // namespace
}  // namespace adaptive
