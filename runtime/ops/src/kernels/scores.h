// The scores of queries: with the keys of a cache, their limit, and what contextual positions add. See attend.h.
#pragma once

#include "cells.h"

namespace adaptive {
namespace {

// Score ROWS queries (row stride head_dim) with BLOCKS whole blocks of keys: out[r * stride + 16 b + lane].
template <CacheType type, int ROWS, int BLOCKS>
ALWAYS_INLINE void score_tile(const float* queries, const uint8_t* keys, int64_t head_dim, float* out, int64_t stride) {
  const int64_t block = 16 * cell_bytes(type, head_dim);
  F16 sums[ROWS][BLOCKS];
  for (int r = 0; r < ROWS; r++)
    for (int b = 0; b < BLOCKS; b++) sums[r][b] = zero();
  for (int64_t w = 0; w < head_dim; w++) {
    F16 components[BLOCKS];
    for (int b = 0; b < BLOCKS; b++)
      components[b] = Elements<type>::load16(keys + b * block + w * 16 * Elements<type>::bytes);
    for (int r = 0; r < ROWS; r++) {
      F16 query = all(queries[r * head_dim + w]);
      for (int b = 0; b < BLOCKS; b++) sums[r][b] = fma(query, components[b], sums[r][b]);
    }
  }
  for (int b = 0; b < BLOCKS; b++) {
    if (type == CacheType::int8) {
      float steps[16];  // their address may be odd
      __builtin_memcpy(steps, keys + b * block + 16 * head_dim, sizeof(steps));
      const F16 scales = load(steps);
      for (int r = 0; r < ROWS; r++) sums[r][b] = sums[r][b] * scales;
    }
    for (int r = 0; r < ROWS; r++) store(out + r * stride + 16 * b, sums[r][b]);
  }
}

template <CacheType type, int ROWS>
ALWAYS_INLINE void score_rows(const float* queries, const uint8_t* keys, int64_t blocks, int64_t head_dim, float* out,
                              int64_t stride) {
  constexpr int TOGETHER = columns_of(ROWS);
  const int64_t block = 16 * cell_bytes(type, head_dim);
  int64_t b = 0;
  for (; b + TOGETHER <= blocks; b += TOGETHER)
    score_tile<type, ROWS, TOGETHER>(queries, keys + b * block, head_dim, out + 16 * b, stride);
  for (; b < blocks; b++) score_tile<type, ROWS, 1>(queries, keys + b * block, head_dim, out + 16 * b, stride);
}

// Score queries with whole blocks of keys, ROWS at a time and then half as many.
template <CacheType type, int ROWS = kRows>
void score(const float* queries, int64_t rows, const uint8_t* keys, int64_t blocks, int64_t head_dim, float* out,
           int64_t stride) {
  for (; rows >= ROWS; rows -= ROWS, queries += ROWS * head_dim, out += ROWS * stride)
    score_rows<type, ROWS>(queries, keys, blocks, head_dim, out, stride);
  if constexpr (ROWS > 1)
    if (rows > 0) score<type, ROWS / 2>(queries, rows, keys, blocks, head_dim, out, stride);
}

// Copy the last block of a cache, of fewer than 16 cells, to a whole one whose other cells are zero.
template <CacheType type>
void widen_last_block(const uint8_t* keys, int64_t cells, int64_t head_dim, uint8_t* into) {
  constexpr int64_t bytes = Elements<type>::bytes;
  __builtin_memset(into, 0, static_cast<size_t>(16 * cell_bytes(type, head_dim)));
  for (int64_t w = 0; w < head_dim; w++)
    __builtin_memcpy(into + w * 16 * bytes, keys + w * cells * bytes, static_cast<size_t>(cells * bytes));
  if (type == CacheType::int8)
    __builtin_memcpy(into + 16 * head_dim, keys + cells * head_dim, static_cast<size_t>(cells) * sizeof(float));
}

// Score queries with the cells [first, last], which do not wrap around: out[r * stride + (cell - first)]. Up to 15
// elements before and 15 after those are overwritten.
template <CacheType type>
void score_cells(const AttendTask& task, const float* queries, int64_t rows, int64_t first, int64_t last,
                 const uint8_t* last_block, float* out, int64_t stride) {
  const CacheHead& cache = *task.cache;
  const int64_t block = 16 * cell_bytes(type, cache.head_dim);
  const int64_t begin = first / 16, end = last / 16 + 1, whole = cache.capacity / 16;
  const int64_t up_to = end < whole ? end : whole;
  float* at = out - first % 16;
  if (begin < up_to) score<type>(queries, rows, cache.keys + begin * block, up_to - begin, cache.head_dim, at, stride);
  if (end > whole) score<type>(queries, rows, last_block, 1, cache.head_dim, at + (whole - begin) * 16, stride);
}

// Replace n scores by c tanh(score / c). The 15 elements after them are overwritten.
ALWAYS_INLINE void cap_scores(float* scores, int64_t n, float c) {
  const F16 most = all(c), part = all(1.0f / c);
  for (int64_t j = 0; j < n; j += 16) store(scores + j, tanh(load(scores + j) * part) * most);
}

// --- Contextual positions

// Add q . e[p_j] to the scores of the n places from `first` on; p_j = min(sum of the gates from j to the last, P - 1),
// a gate is sigmoid(score) where the cell counts. Sums are in float64, from the last place on; between two whole
// positions `logits` (P) = q . e are interpolated. Mirrors export/model/attention/cope.py.
ALWAYS_INLINE void add_positions(const AttendTask& task, float* scores, int64_t first, int64_t n, const float* logits) {
  const int64_t capacity = task.cache->capacity;
  const float most = static_cast<float>(task.num_positions - 1);
  double passed = 0;
  int64_t cell = (first + n - 1) % capacity;
  for (int64_t end = n; end > 0;) {  // 16 gates at a time; scores before the first place are scratch memory
    float gates[16];
    store(gates, all(1.0f) / (all(1.0f) + exp(zero() - load(scores + end - 16))));
    const int64_t begin = end > 16 ? end - 16 : 0;
    for (int64_t j = end - 1; j >= begin; j--) {
      if (task.counted == nullptr || task.counted[cell] > 0) passed += static_cast<double>(gates[j - end + 16]);
      cell = cell == 0 ? capacity - 1 : cell - 1;
      float position = static_cast<float>(passed);
      if (!(position < most)) {  // the last position; also where a gate is NaN
        scores[j] += position == position ? logits[task.num_positions - 1] : position;
        continue;
      }
      const int64_t below = static_cast<int64_t>(position);
      const float slope = logits[below + 1] - logits[below];
      scores[j] += __builtin_fmaf(position - static_cast<float>(below), slope, logits[below]);
    }
    end = begin;
  }
}

}  // namespace
}  // namespace adaptive
