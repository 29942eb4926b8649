// Attention of the queries of one sequence and key/value head. See attend_task.h.
//
// The order of the sums of a query follows its own places only, so its result has the same bits alone, among others and
// in any cache that holds the same tokens: a score is one fma chain over w, the softmax sums lanes j mod 16 of the
// places j = 0, 1, ... that the query sees, and an output is one fma chain over them. Cells that a query does not see
// may hold anything, NaN included: their scores are overwritten and their values not used.
#pragma once

#include "mix.h"
#include "scores.h"

namespace adaptive {
namespace {

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
    if (task.softcap > 0) cap_scores(own, n, task.softcap);
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

}  // namespace
}  // namespace adaptive
