// The tasks of the kernels of recurrent mixers (recur.h, convolve.h), as the operators state them. Plain data, the same
// for every instruction set.
#pragma once
#include <stdint.h>

namespace adaptive {

constexpr int64_t kLane = 16;  // floats of a register; vectors over keys are filled with zeros to a multiple of it

static inline int64_t padded_to_lane(int64_t number) { return (number + kLane - 1) / kLane * kLane; }

// One token of one head. K is the width of a key, V that of a value. It changes the state S (V, K) and reads it:
//   S = S diag(w) + (S a) b^T + v k^T,  o = S r
struct Step {
  const float *w, *k, *r;  // (K)
  const float *a, *b;      // (K), where the task has the term (S a) b^T
  const float* v;          // (V)
  float* o;                // (V)
};

struct RecurTask {
  float* state;  // (V, K), row-major
  int64_t key_width, value_width;
  bool delta;  // whether the steps have a and b
  const Step* steps;  // in the order of the text
  int64_t num_steps;
};

constexpr int64_t kMostConvolved = 8;  // tokens that a convolution sees, the current one included

// A causal convolution of each channel by itself, then silu, for consecutive tokens of one sequence.
struct ConvolveTask {
  const float* weight;  // (width, channels): the weight of the oldest token first
  const float* bias;    // (channels); nullptr: none
  float* state;         // (channels, width - 1): inputs of the tokens before, the oldest first
  float* const* rows;   // (channels) each: an input, which its output replaces
  int64_t num_rows, channels, width;
};

}  // namespace adaptive
