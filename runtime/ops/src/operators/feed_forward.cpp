// The feed-forward part of a block: a mixture of SwiGLU experts, or one dense SwiGLU.
//
//     out = h + sum over selected e of g_e E_e(norm(h)), plus the shared expert where there is one
//
// with the norm before the experts, or of their sum, or both. With parallel = 1 the experts read norm(x), x being the
// input of the layer. With a depth gate out = x + gate (that - x). A token that skips the layer keeps its state.
//
// N = B*T tokens, n of them run, D width, E experts, F hidden, L layers, R chosen pairs of expert and token. Mirrors
// `export/model/moe.py`, `router.py` and `experts.py`.
//
// Attributes: layer, the row of router_top_p; eps, added to the mean square or the variance; parallel; num_experts E;
// hidden and shared_hidden, the F of an expert and of the shared one (0: none); routing; experts_per_token, of top_k;
// renormalize, whether routing weights are divided by their sum; reach, the most that a token moves its threshold, in
// logits; precision_experts and precision_shared.

#include "../parts/experts.h"
#include "../parts/levels.h"
#include "../parts/norm.h"
#include "../parts/product.h"

namespace adaptive {

namespace {

class FeedForward {
 public:
  static constexpr const char* kName = "FeedForward";
  enum Input {
    h, x, runs, gate, router_top_p, norm, norm_bias, post_norm, post_norm_bias, router, per_token_weight,
    per_token_bias, gate_up, down, shared_gate_up, shared_down
  };
  static constexpr Port kInputs[] = {
      {"h", Element::float32},                           // (N, D)
      {"x", Element::float32, optional},                 // (N, D), the input of the layer
      {"runs", Element::boolean, optional},              // (N, 1); absent: every token runs
      {"gate", Element::float32, optional},              // (N, 1)
      {"router_top_p", Element::float32, optional},      // (L, B), of routing top_p
      {"norm", Element::float32, optional},              // (D,), of the input; absent: it is read without a norm
      {"norm_bias", Element::float32, optional},         // (D,), of LayerNorm
      {"post_norm", Element::float32, optional},         // (D,), of the sum, before h is added; absent: none
      {"post_norm_bias", Element::float32, optional},    // (D,)
      {"router", Element::float32, optional},            // (E, D); absent if dense
      {"per_token_weight", Element::float32, optional},  // (D,)
      {"per_token_bias", Element::float32, optional},    // (1,)
      {"gate_up", Element::uint8},                       // E packed (2F, D), gate first
      {"down", Element::uint8},                          // E packed (D, F)
      {"shared_gate_up", Element::uint8, optional},      // packed (2F, D), with the F of the shared expert
      {"shared_down", Element::uint8, optional},         // packed (D, F)
  };
  enum Output { out, selected };
  static constexpr Port kOutputs[] = {
      {"out", Element::float32},       // (N, D)
      {"selected", Element::boolean},  // (N, E), all false where the token skips the layer
  };
  enum Routing { dense, top_p, top_k };

  explicit FeedForward(const Attributes& attributes)
      : layer_(attributes.integer("layer", 0, kMostLayers)),
        eps_(attributes.real("eps", 0, 1)),
        parallel_(attributes.integer("parallel", 0, 1) == 1),
        num_experts_(attributes.integer("num_experts", 1, kMostExperts)),
        hidden_(attributes.integer("hidden", 1, kMostWidth)),
        shared_hidden_(attributes.integer("shared_hidden", 0, kMostWidth)),
        routing_(static_cast<Routing>(attributes.integer("routing", dense, top_k))),
        experts_per_token_(attributes.integer("experts_per_token", routing_ == top_k ? 1 : 0, num_experts_)),
        renormalize_(attributes.integer("renormalize", 0, 1) == 1),
        reach_(attributes.real("reach", 0, kMostReach)),
        precision_(precision_of(attributes, "precision_experts")),
        shared_precision_(precision_of(attributes, "precision_shared")) {
    if (routing_ == dense && num_experts_ != 1) {
      throw Failure(attributes.where() + ": routing 0 (dense) has one expert, found num_experts " +
                    std::to_string(num_experts_));
    }
  }

  void run(Call& call) const {
    const auto residual = call.input<float>(h, {any, any});
    const int64_t count = residual.shape[0], dim = residual.shape[1];
    const auto before = call.input<float>(x, {count, dim});
    const auto here = call.input<bool>(runs, {count, 1});
    const auto factor = call.input<float>(gate, {count, 1});
    if ((factor || parallel_) && !before) call.fail("with the input gate, or parallel = 1, x is needed too");
    const Norm norm_before(call, norm, norm_bias, dim, eps_), norm_after(call, post_norm, post_norm_bias, dim, eps_);
    Experts experts(call, dim, num_experts_);
    experts.add(matrix(call, gate_up, precision_, 2 * hidden_, dim, num_experts_),
                matrix(call, down, precision_, dim, hidden_, num_experts_));
    if (shared_hidden_ > 0) {
      experts.add(matrix(call, shared_gate_up, shared_precision_, 2 * shared_hidden_, dim),
                  matrix(call, shared_down, shared_precision_, dim, shared_hidden_));
    }
    const auto result = call.output<float>(out, {count, dim});
    const auto chosen = call.output<bool>(selected, {count, num_experts_});

    Scratch scratch;
    auto* tokens = scratch.take<int64_t>(count);  // those that run
    int64_t num_tokens = 0;
    for (int64_t n = 0; n < count; ++n) {
      const bool is_here = !here || here.data[n];
      if (is_here) tokens[num_tokens++] = n;
      const float* state = (!is_here && before ? before : residual).data + n * dim;
      float* own = result.data + n * dim;
      if (is_here && norm_after) {
        std::fill_n(own, dim, 0.0f);  // the sum of the experts is normed before h is added
      } else {
        std::copy_n(state, dim, own);
      }
    }
    std::fill(chosen.data, chosen.data + count * num_experts_, false);
    if (num_tokens == 0) return;

    const Rows normed(scratch, num_tokens, dim, experts.any_integer());
    const float* inputs = (parallel_ ? before : residual).data;
    call.parallel(num_tokens, num_tokens * dim * kCostOfValue, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        norm_before.apply(inputs + tokens[i] * dim, normed.values(i));
        normed.quantize(i);
      }
    });
    float* weights = scratch.take<float>(num_tokens * num_experts_);  // (n, E) routing weights, 0 where not selected
    choose(call, normed, dim, tokens, count, chosen.data, weights);
    experts.run(normed, tokens, chosen.data, weights, result.data);

    if (norm_after) {
      call.parallel(num_tokens, num_tokens * dim * kCostOfValue, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          float* y = result.data + tokens[i] * dim;
          norm_after.apply(y, y);
          kernels().add_scaled(y, residual.data + tokens[i] * dim, 1.0f, dim);
        }
      });
    }
    if (!factor) return;
    for (int64_t i = 0; i < num_tokens; ++i) {
      const int64_t n = tokens[i];
      const float* own = before.data + n * dim;
      float* y = result.data + n * dim;
      for (int64_t d = 0; d < dim; ++d) y[d] = own[d] + factor.data[n] * (y[d] - own[d]);
    }
  }

 private:
  // Choose the experts of each token that runs: `chosen` (N, E) and `weights` (n, E).
  void choose(const Call& call, const Rows& normed, int64_t dim, const int64_t* tokens, int64_t count, bool* chosen,
              float* weights) const {
    const int64_t num_tokens = normed.count();
    if (routing_ == dense) {
      for (int64_t i = 0; i < num_tokens; ++i) {
        chosen[tokens[i]] = true;
        weights[i] = 1;
      }
      return;
    }
    const auto rows = call.input<float>(router, {num_experts_, dim});
    if (!rows) call.fail("routing 1 and 2 (top_p, top_k) need the input router");
    const int64_t num_logits = num_tokens * num_experts_;
    call.parallel(num_logits, num_logits * dim * static_cast<int64_t>(sizeof(float)), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        weights[i] = kernels().dot(normed.values(i / num_experts_), rows.data + i % num_experts_ * dim, dim);
      }
    });
    const TokenShift shift = token_shift(call, per_token_weight, per_token_bias, dim, reach_);
    const Levels levels = routing_ == top_p ? Levels(call, router_top_p, layer_, count) : Levels();
    call.parallel(num_tokens, num_logits * kCostOfRank, [&](int64_t first, int64_t last) {
      Scratch scratch;
      auto* order = scratch.take<int32_t>(num_experts_);
      for (int64_t i = first; i < last; ++i) {
        float* probs = weights + i * num_experts_;
        bool* own = chosen + tokens[i] * num_experts_;
        softmax(probs, num_experts_);
        if (!rank(probs, num_experts_, order)) {  // NaN selects all experts, so that it cannot go unnoticed
          std::fill(own, own + num_experts_, true);
          continue;
        }
        int64_t taken = experts_per_token_;
        if (routing_ == top_p) {
          const float level = levels.of(tokens[i]);
          // a level of 1 keeps every expert, also where float32 rounds the mass before the last ones to 1
          taken = level >= 1 ? num_experts_
                             : count_by_mass(probs, order, num_experts_, shift.moved(level, normed.values(i), dim));
        }
        for (int64_t place = 0; place < taken; ++place) own[order[place]] = true;
        for (int64_t place = taken; place < num_experts_; ++place) probs[order[place]] = 0;
        if (renormalize_) divide_by_sum(probs, num_experts_);
      }
    });
  }

  // bytes that could be read while one value is normed and quantised, or one expert is ranked
  static constexpr int64_t kCostOfValue = 16, kCostOfRank = 256;

  int64_t layer_;
  float eps_;
  bool parallel_;
  int64_t num_experts_, hidden_, shared_hidden_;
  Routing routing_;
  int64_t experts_per_token_;
  bool renormalize_;
  float reach_;
  Precision precision_, shared_precision_;
};

const Registration<FeedForward> registration;

}  // namespace

}  // namespace adaptive
