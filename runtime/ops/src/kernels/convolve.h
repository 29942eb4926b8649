// The short convolution of recurrent mixers. See recur_task.h.
//
// An output is one fma chain from the bias over the tokens in their order, so it has the same bits alone and in a
// prompt. The tokens that it sees stay in registers over all rows of a task.
#pragma once

#include "elementwise.h"
#include "recur_task.h"

namespace adaptive {
namespace {

// Sixteen channels from `c` on, or the `n` < 16 that are left.
template <int KEPT>
ALWAYS_INLINE void convolve_lanes(const ConvolveTask& task, int64_t c, int64_t n) {
  const auto read = [n](const float* at) { return n == kLane ? load(at) : load_first(at, n); };
  float columns[KEPT][kLane] = {};
  float* state = task.state + c * KEPT;
  for (int64_t i = 0; i < n; i++)
    for (int j = 0; j < KEPT; j++) columns[j][i] = state[i * KEPT + j];
  F16 before[KEPT], weight[KEPT + 1];
  for (int j = 0; j < KEPT; j++) before[j] = load(columns[j]);
  for (int j = 0; j <= KEPT; j++) weight[j] = read(task.weight + j * task.channels + c);
  const F16 bias = task.bias ? read(task.bias + c) : zero();
  for (int64_t t = 0; t < task.num_rows; t++) {
    float* row = task.rows[t] + c;
    const F16 own = read(row);
    F16 total = bias;
    for (int j = 0; j < KEPT; j++) total = fma(weight[j], before[j], total);
    total = act<Activation::silu>(fma(weight[KEPT], own, total));
    if (n == kLane)
      store(row, total);
    else
      store_first(row, total, n);
    for (int j = 0; j + 1 < KEPT; j++) before[j] = before[j + 1];
    before[KEPT - 1] = own;
  }
  for (int j = 0; j < KEPT; j++) store(columns[j], before[j]);
  for (int64_t i = 0; i < n; i++)
    for (int j = 0; j < KEPT; j++) state[i * KEPT + j] = columns[j][i];
}

template <int KEPT>
void convolve_channels(const ConvolveTask& task, int64_t first, int64_t last) {
  for (int64_t c = first; c < last; c += kLane) convolve_lanes<KEPT>(task, c, last - c < kLane ? last - c : kLane);
}

template <int KEPT = 1>
ALWAYS_INLINE void convolve_width(const ConvolveTask& task, int64_t first, int64_t last) {
  if constexpr (KEPT < kMostConvolved) {
    if (task.width == KEPT + 1)
      convolve_channels<KEPT>(task, first, last);
    else
      convolve_width<KEPT + 1>(task, first, last);
  }
}

// Channels [first, last); without earlier tokens (width 1) there are no weights.
void convolve(const ConvolveTask& task, int64_t first, int64_t last) {
  if (task.width > 1) return convolve_width(task, first, last);
  for (int64_t t = 0; t < task.num_rows; t++)
    activate(Activation::silu, task.rows[t] + first, nullptr, 1.0f, task.rows[t] + first, last - first);
}

}  // namespace
}  // namespace adaptive
