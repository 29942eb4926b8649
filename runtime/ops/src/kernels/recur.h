// The recurrence of mixers with a state of constant size. See recur_task.h.
//
// A row of the state depends on no other, so a few rows at a time stay in registers over all tokens of a task: a prompt
// reads and writes the state once. A sum over keys is one fma chain per lane and then the sum of the lanes, so a result
// has the same bits for any number of tokens and rows.
#pragma once

#include "../simd/simd.h"
#include "cells.h"
#include "recur_task.h"

namespace adaptive {
namespace {

constexpr int kMostChunks = 8;  // registers of a row of the state that is held

// Sum of the products of CHUNKS registers of a row with a vector.
template <int CHUNKS>
ALWAYS_INLINE float dot_chunks(const F16 (&row)[CHUNKS], const float* vector) {
  F16 total = zero();
  for (int c = 0; c < CHUNKS; c++) total = fma(row[c], load(vector + c * kLane), total);
  return sum(total);
}

// Rows [first, first + ROWS) of the state; where fewer are left, the first stands in for those that are missing.
template <int ROWS, int CHUNKS, bool DELTA>
ALWAYS_INLINE void recur_rows(const RecurTask& task, int64_t first) {
  const int64_t width = task.key_width, tail = width - (CHUNKS - 1) * kLane;
  int64_t at[ROWS];
  F16 state[ROWS][CHUNKS];
  for (int r = 0; r < ROWS; r++) {
    at[r] = first + r < task.value_width ? first + r : first;
    const float* row = task.state + at[r] * width;
    for (int c = 0; c < CHUNKS - 1; c++) state[r][c] = load(row + c * kLane);
    const float* end = row + (CHUNKS - 1) * kLane;
    state[r][CHUNKS - 1] = tail == kLane ? load(end) : load_first(end, tail);
  }
  for (int64_t t = 0; t < task.num_steps; t++) {
    const Step& step = task.steps[t];
    F16 value[ROWS], removed[ROWS];
    for (int r = 0; r < ROWS; r++) {
      value[r] = all(step.v[at[r]]);
      removed[r] = DELTA ? all(dot_chunks(state[r], step.a)) : zero();
    }
    for (int c = 0; c < CHUNKS; c++) {
      const F16 w = load(step.w + c * kLane), k = load(step.k + c * kLane);
      for (int r = 0; r < ROWS; r++) state[r][c] = state[r][c] * w;
      if (DELTA) {
        const F16 b = load(step.b + c * kLane);
        for (int r = 0; r < ROWS; r++) state[r][c] = fma(removed[r], b, state[r][c]);
      }
      for (int r = 0; r < ROWS; r++) state[r][c] = fma(value[r], k, state[r][c]);
    }
    for (int r = 0; r < ROWS; r++) step.o[at[r]] = dot_chunks(state[r], step.r);
  }
  for (int r = 0; r < ROWS; r++) {
    float* row = task.state + at[r] * width;
    for (int c = 0; c < CHUNKS - 1; c++) store(row + c * kLane, state[r][c]);
    float* end = row + (CHUNKS - 1) * kLane;
    if (tail == kLane)
      store(end, state[r][CHUNKS - 1]);
    else
      store_first(end, state[r][CHUNKS - 1], tail);
  }
}

template <int CHUNKS, bool DELTA>
void recur_chunks(const RecurTask& task) {
  constexpr int kTogether = kSums / CHUNKS > 4 ? 4 : kSums / CHUNKS > 1 ? kSums / CHUNKS : 1;
  for (int64_t row = 0; row < task.value_width; row += kTogether) recur_rows<kTogether, CHUNKS, DELTA>(task, row);
}

// A row that is too wide to be held: the same sums, the state in memory.
template <bool DELTA>
void recur_wide(const RecurTask& task) {
  const int64_t width = task.key_width;
  for (int64_t v = 0; v < task.value_width; v++) {
    float* row = task.state + v * width;
    const auto read = [&](int64_t k) { return k + kLane <= width ? load(row + k) : load_first(row + k, width - k); };
    for (int64_t t = 0; t < task.num_steps; t++) {
      const Step& step = task.steps[t];
      F16 removed = zero();
      if (DELTA) {
        for (int64_t k = 0; k < width; k += kLane) removed = fma(read(k), load(step.a + k), removed);
        removed = all(sum(removed));
      }
      const F16 value = all(step.v[v]);
      F16 total = zero();
      for (int64_t k = 0; k < width; k += kLane) {
        F16 state = read(k) * load(step.w + k);
        if (DELTA) state = fma(removed, load(step.b + k), state);
        state = fma(value, load(step.k + k), state);
        total = fma(state, load(step.r + k), total);
        if (k + kLane <= width)
          store(row + k, state);
        else
          store_first(row + k, state, width - k);
      }
      step.o[v] = sum(total);
    }
  }
}

template <bool DELTA, int CHUNKS = 1>
ALWAYS_INLINE void recur_width(const RecurTask& task, int64_t chunks) {
  if constexpr (CHUNKS <= kMostChunks) {
    if (chunks == CHUNKS)
      recur_chunks<CHUNKS, DELTA>(task);
    else
      recur_width<DELTA, CHUNKS + 1>(task, chunks);
  } else {
    recur_wide<DELTA>(task);
  }
}

void recur(const RecurTask& task) {
  const int64_t chunks = padded_to_lane(task.key_width) / kLane;
  if (task.delta)
    recur_width<true>(task, chunks);
  else
    recur_width<false>(task, chunks);
}

}  // namespace
}  // namespace adaptive
