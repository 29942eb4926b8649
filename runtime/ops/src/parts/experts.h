// The experts, each on the tokens that chose it. Mirrors `export/model/experts/experts.py`.
//
// N tokens, n of them run, D width, E experts, F hidden, R pairs of expert and token.
#pragma once

#include <algorithm>

#include "product.h"

namespace adaptive {

// The form of the experts, besides their matrices.
struct ExpertForm {
  Activation activation = Activation::silu;
  bool gated = true;

  int64_t hidden_outputs(int64_t width) const { return gated ? 2 * width : width; }
};

// The biases of a stack of experts, (E, 2F or F) and (E, D); null where there are none.
struct Biases {
  const float *gate_up = nullptr, *down = nullptr;
};

// Adds to each token's row the sum over its experts of g_e (act(x Wg_e) * (x Wu_e)) Wd_e, or of g_e act(x Wu_e) Wd_e
// without a gate. A bias follows each product.
//
// The pairs are ordered by expert, then by token, so that a matrix is read once for all its tokens. A row takes its
// experts in rising order, however many rows there are: a prompt, single tokens and a batch give the same bits.
class Experts {
 public:
  // `columns` is the width of `chosen`, at least the number of routed experts.
  Experts(const Call& call, int64_t dim, int64_t num_routed, int64_t columns, ExpertForm form)
      : call_(call), dim_(dim), num_routed_(num_routed), columns_(columns), form_(form) {}

  // Add a stack of experts: the routed ones first, then the shared one, which every token takes.
  void add(const Matrix& gate_up, const Matrix& down, Biases biases);

  bool any_integer() const;

  // Add the experts of `tokens` to their rows of `out` (N, D).
  //
  // `chosen` (N, columns) tells the experts of a token and `weights` (n, width) their factors, the routed experts first;
  // `shared_weights` (n,) are those of the shared expert, null for 1. A token may have none.
  void run(const Rows& x, const int64_t* tokens, const bool* chosen, const float* weights, int64_t width,
           const float* shared_weights, float* out) const;

 private:
  struct Stack {
    Matrix gate_up, down;
    Biases biases;
  };
  struct Pair {
    int64_t row;  // of x
    float weight;
  };
  struct Run {  // the pairs first to last of one expert
    Matrix gate_up, down;
    int64_t first, last;
    int64_t groups_before;  // groups of gate_up of the runs before this one
    const Rows* inner;      // (last - first, F)
    Biases biases;          // of this expert

    int64_t size() const { return last - first; }
  };

  int64_t num_experts() const { return num_routed_ + (num_stacks_ > 1 ? 1 : 0); }
  int64_t most_pairs() const;
  Run expert(int64_t number, int64_t first, int64_t last) const;
  // Compute at most `most_pairs` pairs, of the experts in `runs`.
  void compute(const Rows& x, const int64_t* tokens, const Pair* pairs, Run* runs, int64_t num_runs, float* out) const;

  const Call& call_;
  int64_t dim_, num_routed_, columns_;
  ExpertForm form_;
  Stack stacks_[2];
  int64_t num_stacks_ = 0;
};

}  // namespace adaptive
