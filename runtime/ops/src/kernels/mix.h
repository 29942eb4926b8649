// The sums of the values of a cache by the shares of queries. See attend.h.
#pragma once

#include "cells.h"

namespace adaptive {
namespace {

// Add to sums (ROWS, CHUNKS registers) share times value for the cells of places [first, last]; `shares` is that of
// place `base`. A last chunk of `tail` < 16 components is loaded with care where PARTIAL.
template <CacheType type, int ROWS, int CHUNKS, bool PARTIAL>
ALWAYS_INLINE void mix_places(F16 (&sums)[ROWS][CHUNKS], const CacheHead& cache, const uint8_t* column, int64_t tail,
                              const float* const* shares, int64_t base, int64_t first, int64_t last) {
  const int64_t row = cell_bytes(type, cache.head_dim);
  while (first <= last) {  // at most twice: a ring wraps around once
    const int64_t cell = first % cache.capacity;
    int64_t number = last - first + 1;
    if (number > cache.capacity - cell) number = cache.capacity - cell;
    const uint8_t* value = column + cell * row;
    const int64_t to_scale = cache.values + cache.head_dim - column;  // int8: from a component to the scale of its cell
    const int64_t offset = first - base;
    for (int64_t j = 0; j < number; j++, value += row) {
      F16 chunk[CHUNKS];
      for (int c = 0; c < CHUNKS; c++)
        chunk[c] =
            PARTIAL ? load_some<type>(value, tail) : Elements<type>::load16(value + c * 16 * Elements<type>::bytes);
      const float scale = type == CacheType::int8 ? load_float(value + to_scale) : 1.0f;
      for (int r = 0; r < ROWS; r++) {
        F16 share = all(type == CacheType::int8 ? shares[r][offset + j] * scale : shares[r][offset + j]);
        for (int c = 0; c < CHUNKS; c++) sums[r][c] = fma(share, chunk[c], sums[r][c]);
      }
    }
    first += number;
  }
}

// The same for one query. Not inlined: it is called for the few places that a tile does not share.
template <CacheType type, int CHUNKS, bool PARTIAL>
__attribute__((noinline)) void mix_alone(F16 (&sums)[CHUNKS], const CacheHead& cache, const uint8_t* column,
                                         int64_t tail, const float* shares, int64_t base, int64_t first, int64_t last) {
  F16 own[1][CHUNKS];
  for (int c = 0; c < CHUNKS; c++) own[0][c] = sums[c];
  mix_places<type, 1, CHUNKS, PARTIAL>(own, cache, column, tail, &shares, base, first, last);
  for (int c = 0; c < CHUNKS; c++) sums[c] = own[0][c];
}

// One query of a tile, whose shares are those of the places from `base` on.
struct TileRow {
  const Query* query;
  const float* shares;
  float factor;  // weight / sum of the shares
};

// Write components [w, w + 16 CHUNKS) of the outputs of ROWS queries; PARTIAL: `tail` components from w on.
template <CacheType type, int ROWS, int CHUNKS, bool PARTIAL>
ALWAYS_INLINE void mix_tile(const CacheHead& cache, const TileRow* rows, int64_t base, int64_t w, int64_t tail) {
  const uint8_t* column = cache.values + w * Elements<type>::bytes;
  const float* shares[ROWS];
  int64_t first = rows[0].query->first, last = rows[0].query->last;  // the places that all of them see
  for (int r = 0; r < ROWS; r++) {
    const Query& query = *rows[r].query;
    shares[r] = rows[r].shares;
    if (query.first > first) first = query.first;
    if (query.last < last) last = query.last;
  }
  if (first > last) first = last + 1;  // none: each of them sees all of its places alone
  F16 sums[ROWS][CHUNKS];
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < CHUNKS; c++) sums[r][c] = zero();
  for (int r = 0; r < ROWS; r++) {
    const Query& query = *rows[r].query;
    if (query.first >= first) continue;
    const int64_t end = first - 1 < query.last ? first - 1 : query.last;
    mix_alone<type, CHUNKS, PARTIAL>(sums[r], cache, column, tail, shares[r], base, query.first, end);
  }
  mix_places<type, ROWS, CHUNKS, PARTIAL>(sums, cache, column, tail, shares, base, first, last);
  for (int r = 0; r < ROWS; r++) {
    const Query& query = *rows[r].query;
    const int64_t begin = last + 1 > query.first ? last + 1 : query.first;
    if (begin <= query.last)
      mix_alone<type, CHUNKS, PARTIAL>(sums[r], cache, column, tail, shares[r], base, begin, query.last);
    for (int c = 0; c < CHUNKS; c++) {
      const F16 out = sums[r][c] * all(rows[r].factor);
      if (PARTIAL)
        store_first(query.out + w, out, tail);
      else
        store(query.out + w + 16 * c, out);
    }
  }
}

template <CacheType type, int ROWS>
ALWAYS_INLINE void mix_rows(const CacheHead& cache, const TileRow* rows, int64_t base) {
  constexpr int TOGETHER = columns_of(ROWS);
  int64_t w = 0;
  for (; w + 16 * TOGETHER <= cache.head_dim; w += 16 * TOGETHER)
    mix_tile<type, ROWS, TOGETHER, false>(cache, rows, base, w, 0);
  for (; w + 16 <= cache.head_dim; w += 16) mix_tile<type, ROWS, 1, false>(cache, rows, base, w, 0);
  if (w < cache.head_dim) mix_tile<type, ROWS, 1, true>(cache, rows, base, w, cache.head_dim - w);
}

// Write the outputs of a tile, ROWS queries at a time and then half as many.
template <CacheType type, int ROWS = kRows>
void mix(const CacheHead& cache, const TileRow* tile, int64_t rows, int64_t base) {
  for (; rows >= ROWS; rows -= ROWS, tile += ROWS) mix_rows<type, ROWS>(cache, tile, base);
  if constexpr (ROWS > 1)
    if (rows > 0) mix<type, ROWS / 2>(cache, tile, rows, base);
}

}  // namespace
}  // namespace adaptive
