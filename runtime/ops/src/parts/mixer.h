// What the operators of mixers with a recurrent state share: inputs and outputs, the recurrence, the last product.
//
// B batch, T time, N = B*T tokens, S slots, D width, H heads, W width of a head's keys and values, C channels of the
// short convolution, R tokens of a block, L layers. A token that skips the layer leaves the states as they are, under
// both policies. Mirrors `train/model/mixers`.
#pragma once

#include <array>

#include "../kernels/recur_task.h"
#include "convolution.h"
#include "in_place.h"
#include "norm.h"
#include "places.h"
#include "product.h"
#include "sequences.h"

namespace adaptive {

struct MixerPorts {
  // clang-format off
  enum Input { x, runs, slots, lengths, norm, norm_bias, post_norm, post_norm_bias, past_state, past_conv, o, own };
  // clang-format on
  enum Output { h, new_lengths, present_state, present_conv };
  // The states are written in place where past and present are one buffer; else they are copied first.
  static constexpr Port kOutputs[] = {
      {"h", Element::float32},          // (N, D): x + the mixer's output, or x where the layer is skipped
      {"new_lengths", Element::int64},  // (1, S), lengths of this layer after the pass
      {"present_state", Element::float32},
      {"present_conv", Element::float32, optional},
  };

  // The inputs that every mixer has, and then its own, from the index `own` on.
  template <class... Own>
  static constexpr std::array<Port, own + sizeof...(Own)> with_own(const Own&... ports) {
    return {Port{"x", Element::float32},                     // (N, D)
            Port{"runs", Element::boolean, optional},        // (N, 1); absent: every token runs
            Port{"slots", Element::int64},                   // (B,), the slot of each row of tokens
            Port{"lengths", Element::int64},                 // (L, S), tokens that each layer holds
            Port{"norm", Element::float32, optional},        // (D,), of x; absent: x is read without a norm
            Port{"norm_bias", Element::float32, optional},   // (D,), of LayerNorm
            Port{"post_norm", Element::float32, optional},   // (D,), of the output, before x is added; absent: none
            Port{"post_norm_bias", Element::float32, optional},  // (D,)
            Port{"past_state", Element::float32},            // (S, H, W, W): values by keys
            Port{"past_conv", Element::float32, optional},   // (S, C, K): inputs of the last K tokens, the oldest first
            Port{"o", Element::uint8},                       // packed (D, H W)
            ports...};
  }
};

// The attributes that every mixer has.
struct MixerShape {
  explicit MixerShape(const Attributes& attributes);

  int64_t inner() const { return num_heads * head_dim; }

  int64_t layer;
  float eps;  // of every norm that has no eps of its own
  int64_t num_heads, head_dim;
  Policy policy;
  Precision precision;  // of the large matrices
};

// Vectors of one head and token, of W values each and zeros behind them; what the recurrence reads them as, see Step.
struct HeadVectors {
  float *w, *k, *r, *a, *b, *v;
};

class MixerPass {
 public:
  // Running tokens that are computed together, in the order of the pass.
  struct Block {
    const int32_t* tokens;
    int64_t count;  // R
    Sequences sequences;
  };

  // One product of a block: out (R, outputs), whose rows are `stride` apart.
  struct Product {
    const Matrix& matrix;
    const Rows& rows;
    float* out;
    int64_t stride;
  };

  // Read the inputs that every mixer has. `channels` and `kept` are the shape of a slot of past_conv, which is absent
  // where `kept` is 0; channels of `any` stand for D.
  MixerPass(const Call& call, const MixerShape& shape, int64_t channels, int64_t kept, Scratch& scratch);

  // Call compute(block) for all running tokens, some at a time. The outputs are allocated here, after all inputs have
  // been checked: states may be written in place.
  template <class Compute>
  void run(const Compute& compute) {
    begin();
    for (int64_t first = 0; first < places.num_running; first += kBlockRows) {
      Scratch scratch;
      const int32_t* tokens = places.running + first;
      const int64_t count = std::min(kBlockRows, places.num_running - first);
      compute(Block{tokens, count, sequences_of(places, tokens, count, scratch)});
    }
  }

  // Write the normed inputs of a block, (R, D), and quantise them where the rows hold integers too.
  void normalize(const Block& block, const Rows& into) const;

  // Compute products, whose groups of outputs are shared among the threads.
  void multiply_all(std::initializer_list<Product> products) const;

  // Convolve C channels of rows that are `stride` apart, in place, and keep the last inputs of each slot.
  void convolve(const Block& block, const Convolution& convolution, float* rows, int64_t stride) const;

  // Take the tokens of a block through the recurrence, head by head: prepare(i, head, vectors, step) fills the vectors
  // of row i and the step's v and o, and finish(i, head) reads o.
  template <class Prepare, class Finish>
  void recur(const Block& block, bool delta, const Prepare& prepare, const Finish& finish) const;

  // h = x + o mixed, or x + norm(o mixed), for rows (R, H W) that are not quantised yet.
  void finish(const Block& block, const Rows& mixed) const;

  float* conv(int64_t slot) const { return conv_state_ + slot * channels_ * kept_; }

  const Call& call;
  int64_t tokens, dim;  // N, D
  Places places;

 private:
  static constexpr int64_t kBlockRows = 256;  // so that what a prompt needs in memory has a bound
  static constexpr int64_t kSteps = 32;       // tokens of a task of the recurrence

  void begin();

  const MixerShape& shape_;
  int64_t channels_, kept_;
  Tensor<const float> x_, past_state_, past_conv_;
  Norm before_, after_;
  Matrix o_;
  float *h_ = nullptr, *state_ = nullptr, *conv_state_ = nullptr;
};

template <class Prepare, class Finish>
void MixerPass::recur(const Block& block, bool delta, const Prepare& prepare, const Finish& finish) const {
  const int64_t heads = shape_.num_heads, width = shape_.head_dim, padded = padded_to_lane(width);
  const int64_t cost = (block.count + block.sequences.count) * heads * width * width * 8;
  call.parallel(block.sequences.count * heads, cost, [&](int64_t first, int64_t last) {
    Scratch scratch;
    auto* steps = scratch.take<Step>(kSteps);
    float* memory = scratch.zeros<float>(kSteps * 6 * padded);
    for (int64_t u = first; u < last; ++u) {
      const Sequence& sequence = block.sequences.list[u / heads];
      const int64_t head = u % heads, end = sequence.first + sequence.count;
      float* state = state_ + (sequence.slot * heads + head) * width * width;
      for (int64_t begin = sequence.first; begin < end; begin += kSteps) {
        const int64_t count = std::min(kSteps, end - begin);
        for (int64_t j = 0; j < count; ++j) {
          float* at = memory + j * 6 * padded;
          const HeadVectors vectors{at,           at + padded,     at + 2 * padded, at + 3 * padded,
                                    at + 4 * padded, at + 5 * padded};
          steps[j] = {vectors.w, vectors.k, vectors.r, vectors.a, vectors.b, vectors.v, nullptr};
          prepare(block.sequences.order[begin + j], head, vectors, steps[j]);
        }
        kernels().recur({state, width, width, delta, steps, count});
        for (int64_t j = 0; j < count; ++j) finish(block.sequences.order[begin + j], head);
      }
    }
  });
}

}  // namespace adaptive
