// Attention of the queries of one sequence and key/value head, and the writing of its cache. See attend_task.h.
//
// The order of the sums of a query follows its own places only, so its result has the same bits alone, among others and
// in any cache that holds the same tokens: a score is one fma chain over w, the softmax sums lanes j mod 16 of the
// places j = 0, 1, ... that the query sees, and an output is one fma chain over them. Cells that a query does not see
// may hold anything, NaN included: their scores are overwritten and their values not used.

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

// --- The element types of a cache

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

// --- Scores

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

// --- Contextual positions

// Add q . e[p_j] to the scores of the n places from `first` on; p_j = min(sum of the gates from j to the last, P - 1),
// a gate is sigmoid(score) where the cell counts. Sums are in float64, from the last place on; between two whole
// positions `logits` (P) = q . e are interpolated. Mirrors export/model/cope.py.
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

// --- Softmax and values

// Replace the n scores by exp(score - greatest) and return their sum. The 15 elements after them are overwritten.
ALWAYS_INLINE float softmax_of(float* scores, int64_t n) {
  for (int64_t j = n; j % 16; j++) scores[j] = -__builtin_inff();
  F16 greatest = load(scores);
  for (int64_t j = 16; j < n; j += 16) greatest = max(greatest, load(scores + j));
  const F16 most = all(max_lane(greatest));
  F16 total = zero();
  for (int64_t j = 0; j < n; j += 16) {
    F16 share = exp(load(scores + j) - most);
    store(scores + j, share);
    total = total + share;
  }
  return sum(total);
}

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

// --- The task

template <CacheType type>
void attend_tile(const AttendTask& task, const Query* queries, int64_t rows, const uint8_t* last_block,
                 float* scratch) {
  const CacheHead& cache = *task.cache;
  const int64_t head_dim = cache.head_dim, last = queries[rows - 1].last;
  int64_t first = queries[0].first;
  for (int64_t r = 1; r < rows; r++)
    if (queries[r].first < first) first = queries[r].first;
  const int64_t span = last - first + 1, stride = span + 3 * kKeyBlock;
  const int64_t positions = padded_positions(task.num_positions);
  float* scaled = scratch;                                        // (rows, W)
  float* logits = scaled + kMostQueries * head_dim;               // (rows, P)
  float* scores = logits + kMostQueries * positions + kKeyBlock;  // (rows, stride), with a block before it
  for (int64_t r = 0; r < rows; r++)
    __builtin_memcpy(scaled + r * head_dim, queries[r].values, sizeof(float) * static_cast<size_t>(head_dim));
  if (task.position_embedding)
    score<CacheType::fp32>(scaled, rows, reinterpret_cast<const uint8_t*>(task.position_embedding), positions / 16,
                           head_dim, logits, positions);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim));
  for (int64_t i = 0; i < rows * head_dim; i++) scaled[i] *= scale;

  const int64_t cell = first % cache.capacity, to_end = cache.capacity - cell;  // where the ring wraps around
  score_cells<type>(task, scaled, rows, cell, cell + (span < to_end ? span : to_end) - 1, last_block, scores, stride);
  if (span > to_end) score_cells<type>(task, scaled, rows, 0, span - to_end - 1, last_block, scores + to_end, stride);
  TileRow tile[kMostQueries];
  for (int64_t r = 0; r < rows; r++) {
    const int64_t n = queries[r].last - queries[r].first + 1;
    float* own = scores + r * stride + (queries[r].first - first);
    if (task.position_embedding) add_positions(task, own, queries[r].first, n, logits + r * positions);
    tile[r] = {queries + r, scores + r * stride, queries[r].weight / softmax_of(own, n)};
  }
  mix<type>(cache, tile, rows, first);
}

template <CacheType type>
void attend_type(const AttendTask& task) {
  const CacheHead& cache = *task.cache;
  const int64_t rest = cache.capacity % kKeyBlock;
  uint8_t* last_block = reinterpret_cast<uint8_t*>(task.scratch);
  float* scratch = task.scratch + kKeyBlock * cache.head_dim + kKeyBlock;
  if (rest) {
    const int64_t whole = cache.capacity / kKeyBlock;
    widen_last_block<type>(cache.keys + whole * kKeyBlock * cell_bytes(type, cache.head_dim), rest, cache.head_dim,
                           last_block);
  }
  for (int64_t q = 0; q < task.num_queries; q += kMostQueries) {
    const int64_t rows = task.num_queries - q < kMostQueries ? task.num_queries - q : kMostQueries;
    attend_tile<type>(task, task.queries + q, rows, last_block, scratch);
  }
}

void attend(const AttendTask& task) {
  switch (task.cache->type) {
    case CacheType::fp32:
      return attend_type<CacheType::fp32>(task);
    case CacheType::fp16:
      return attend_type<CacheType::fp16>(task);
    case CacheType::int8:
      return attend_type<CacheType::int8>(task);
  }
}

// --- Writing

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
