// The feed-forward part of a block: a mixture of experts, or one dense FFN.
//
//     out = h + sum over selected e of g_e E_e(norm(h)), plus the shared expert where there is one
//
// with the norm before the experts, or of their sum, or both. With parallel = 1 the experts read norm(x), x being the
// input of the layer. With a depth gate out = x + gate (that - x). A token that skips the layer keeps its state.
//
// N = B*T tokens, n of them run, D width, E experts, Z zero-computation experts, of which K constants, F hidden, L
// layers, R chosen pairs of expert and token, H = 2F where FFNs are gated (gate first), else F. Mirrors
// `export/model/experts/moe.py`, `router.py`, `experts.py` and `zero_experts.py`.
//
// Attributes: layer, the row of router_top_p; eps, added to the mean square or the variance; parallel; num_experts E;
// zeros, copies and constants, the zero-computation experts of each kind, which the router counts after the others;
// hidden and shared_hidden, the F of an expert and of the shared one (0: none); routing; experts_per_token, of top_k;
// renormalize, whether routing weights are divided by their sum; reach, the most that a token moves its threshold, in
// logits; precision_experts and precision_shared; most_experts, the candidates of a token under top_p (0: all); score, 0
// softmax or 1 sigmoid; activation and gated, the form of every FFN; columns, the width of `selected`, which is E + Z
// or, of a dense FFN in a model with experts, theirs.

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
    per_token_bias, gate_up, down, shared_gate_up, shared_down, router_ratio, router_bias, selection_bias,
    gate_up_bias, down_bias, shared_gate_up_bias, shared_down_bias, shared_gate, zero_mix, zero_constants
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
      {"router", Element::float32, optional},            // (E + Z, D); absent if dense
      {"per_token_weight", Element::float32, optional},  // (D,)
      {"per_token_bias", Element::float32, optional},    // (1,)
      {"gate_up", Element::uint8},                       // E packed (H, D)
      {"down", Element::uint8},                          // E packed (D, F)
      {"shared_gate_up", Element::uint8, optional},      // packed (H, D), with the F of the shared expert
      {"shared_down", Element::uint8, optional},         // packed (D, F)
      {"router_ratio", Element::float32, optional},      // (L, B), with most_experts
      {"router_bias", Element::float32, optional},       // (E + Z,)
      {"selection_bias", Element::float32, optional},    // (E + Z,), added to the scores for the choice alone
      {"gate_up_bias", Element::float32, optional},      // (E, H)
      {"down_bias", Element::float32, optional},         // (E, D)
      {"shared_gate_up_bias", Element::float32, optional},  // (1, H)
      {"shared_down_bias", Element::float32, optional},     // (1, D)
      {"shared_gate", Element::float32, optional},          // (D,), of the factor of the shared expert
      {"zero_mix", Element::float32, optional},             // (K, D), of the share of the input in a constant expert
      {"zero_constants", Element::float32, optional},       // (K, D)
  };
  enum Output { out, selected };
  static constexpr Port kOutputs[] = {
      {"out", Element::float32},       // (N, D)
      {"selected", Element::boolean},  // (N, columns), all false where the token skips the layer
  };
  enum Routing { dense, top_p, top_k, relu };

  explicit FeedForward(const Attributes& attributes)
      : layer_(attributes.integer("layer", 0, kMostLayers)),
        eps_(attributes.real("eps", 0, 1)),
        parallel_(attributes.integer("parallel", 0, 1) == 1),
        num_experts_(attributes.integer("num_experts", 1, kMostExperts)),
        zeros_(attributes.integer("zeros", 0, kMostExperts)),
        copies_(attributes.integer("copies", 0, kMostExperts)),
        constants_(attributes.integer("constants", 0, kMostExperts)),
        num_choices_(num_experts_ + zeros_ + copies_ + constants_),
        hidden_(attributes.integer("hidden", 1, kMostWidth)),
        shared_hidden_(attributes.integer("shared_hidden", 0, kMostWidth)),
        routing_(static_cast<Routing>(attributes.integer("routing", dense, relu))),
        experts_per_token_(attributes.integer("experts_per_token", routing_ == top_k ? 1 : 0, num_experts_)),
        renormalize_(attributes.integer("renormalize", 0, 1) == 1),
        reach_(attributes.real("reach", 0, kMostReach)),
        precision_(precision_of(attributes, "precision_experts")),
        shared_precision_(precision_of(attributes, "precision_shared")),
        most_experts_(attributes.integer("most_experts", 0, routing_ == top_p ? num_experts_ : 0)),
        sigmoid_(attributes.integer("score", 0, 1) == 1),
        form_{static_cast<Activation>(attributes.integer("activation", 0, 3)), attributes.integer("gated", 0, 1) == 1},
        columns_(attributes.integer("columns", num_choices_, routing_ == dense ? 4 * kMostExperts : num_choices_)) {
    if (routing_ == dense && num_choices_ != 1) {
      throw Failure(attributes.where() + ": routing 0 (dense) has one expert, found num_experts " +
                    std::to_string(num_experts_) + " and " + std::to_string(num_choices_ - num_experts_) +
                    " zero-computation experts");
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
    Experts experts(call, dim, num_experts_, columns_, form_);
    experts.add(matrix(call, gate_up, precision_, form_.hidden_outputs(hidden_), dim, num_experts_),
                matrix(call, down, precision_, dim, hidden_, num_experts_),
                biases(call, gate_up_bias, down_bias, num_experts_, hidden_, dim));
    if (shared_hidden_ > 0) {
      experts.add(matrix(call, shared_gate_up, shared_precision_, form_.hidden_outputs(shared_hidden_), dim),
                  matrix(call, shared_down, shared_precision_, dim, shared_hidden_),
                  biases(call, shared_gate_up_bias, shared_down_bias, 1, shared_hidden_, dim));
    }
    const auto result = call.output<float>(out, {count, dim});
    const auto chosen = call.output<bool>(selected, {count, columns_});

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
    std::fill(chosen.data, chosen.data + count * columns_, false);
    if (num_tokens == 0) return;

    const Rows normed(scratch, num_tokens, dim, experts.any_integer());
    const float* inputs = (parallel_ ? before : residual).data;
    call.parallel(num_tokens, num_tokens * dim * kCostOfValue, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        norm_before.apply(inputs + tokens[i] * dim, normed.values(i));
        normed.quantize(i);
      }
    });
    auto* weights = scratch.take<float>(num_tokens * num_choices_);  // (n, E + Z), 0 where not selected
    choose(call, normed, dim, tokens, count, chosen.data, weights);
    experts.run(normed, tokens, chosen.data, weights, num_choices_, shared_weights(call, normed, dim, scratch),
                result.data);
    if (copies_ + constants_ > 0) add_zero_experts(call, normed, dim, tokens, weights, result.data);

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
  // Read the two biases of a stack, both or neither.
  Biases biases(const Call& call, size_t first, size_t second, int64_t experts, int64_t hidden, int64_t dim) const {
    const auto own = call.input<float>(first, {experts, form_.hidden_outputs(hidden)});
    const auto last = call.input<float>(second, {experts, dim});
    if (own.present != last.present) call.fail_input(second, "and the bias before it come together, found one of them");
    return {own.data, last.data};
  }

  // Compute the factor of the shared expert, sigmoid(w . x) of each token that runs; null: 1.
  const float* shared_weights(const Call& call, const Rows& normed, int64_t dim, Scratch& scratch) const {
    const auto weight = call.input<float>(shared_gate, {dim});
    if (!weight) return nullptr;
    float* factors = scratch.take<float>(normed.count());
    for (int64_t i = 0; i < normed.count(); ++i) {
      factors[i] = sigmoid(kernels().dot(normed.values(i), weight.data, dim));
    }
    return factors;
  }

  // Add copies and constants to the rows of the tokens that run, `out` (N, D): their output is a share of the input and
  // the rest of a vector.
  void add_zero_experts(const Call& call, const Rows& normed, int64_t dim, const int64_t* tokens, const float* weights,
                        float* out) const {
    const auto mix = call.input<float>(zero_mix, {constants_, dim});
    const auto vectors = call.input<float>(zero_constants, {constants_, dim});
    if (constants_ > 0 && (!mix || !vectors)) call.fail("constants need the inputs zero_mix and zero_constants");
    const int64_t num_tokens = normed.count();
    call.parallel(num_tokens, num_tokens * dim * (1 + constants_) * kCostOfValue, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const float* x = normed.values(i);
        const float* own = weights + i * num_choices_ + num_experts_ + zeros_;
        float* y = out + tokens[i] * dim;
        float kept = 0;  // the factor of the input
        for (int64_t c = 0; c < copies_; ++c) kept += own[c];
        for (int64_t c = 0; c < constants_; ++c) {
          const float weight = own[copies_ + c];
          if (weight == 0) continue;
          const float share = sigmoid(kernels().dot(x, mix.data + c * dim, dim));
          kept += weight * share;
          kernels().add_scaled(y, vectors.data + c * dim, weight * (1 - share), dim);
        }
        if (kept != 0) kernels().add_scaled(y, x, kept, dim);
      }
    });
  }

  // Choose the experts of each token that runs: `chosen` (N, columns) and `weights` (n, E + Z).
  void choose(const Call& call, const Rows& normed, int64_t dim, const int64_t* tokens, int64_t count, bool* chosen,
              float* weights) const {
    const int64_t num_tokens = normed.count();
    if (routing_ == dense) {
      for (int64_t i = 0; i < num_tokens; ++i) {
        chosen[tokens[i] * columns_] = true;
        weights[i] = 1;
      }
      return;
    }
    const auto rows = call.input<float>(router, {num_choices_, dim});
    if (!rows) call.fail("routing 1 to 3 (top_p, top_k, relu) need the input router");
    const auto offset = call.input<float>(router_bias, {num_choices_});
    const auto favour = call.input<float>(selection_bias, {num_choices_});
    const int64_t num_logits = num_tokens * num_choices_;
    call.parallel(num_logits, num_logits * dim * static_cast<int64_t>(sizeof(float)), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t e = i % num_choices_;
        weights[i] = kernels().dot(normed.values(i / num_choices_), rows.data + e * dim, dim);
        if (offset) weights[i] += offset.data[e];
      }
    });
    const TokenShift shift = token_shift(call, per_token_weight, per_token_bias, dim, reach_);
    const bool by_mass = routing_ == top_p || routing_ == relu;
    const Levels levels = by_mass ? Levels(call, router_top_p, layer_, count) : Levels();
    const Levels ratios = most_experts_ > 0 ? Levels(call, router_ratio, layer_, count) : Levels();
    const int64_t candidates = most_experts_ > 0 ? most_experts_ : num_choices_;
    call.parallel(num_tokens, num_logits * kCostOfRank, [&](int64_t first, int64_t last) {
      Scratch scratch;
      auto* order = scratch.take<int32_t>(num_choices_);
      float* favoured = favour ? scratch.take<float>(num_choices_) : nullptr;
      for (int64_t i = first; i < last; ++i) {
        float* probs = weights + i * num_choices_;
        bool* own = chosen + tokens[i] * columns_;
        if (routing_ == relu) {
          for (int64_t e = 0; e < num_choices_; ++e) probs[e] = probs[e] <= 0 ? 0 : probs[e];  // NaN stays
        } else if (sigmoid_) {
          for (int64_t e = 0; e < num_choices_; ++e) probs[e] = sigmoid(probs[e]);
        } else {
          softmax(probs, num_choices_);
        }
        for (int64_t e = 0; favour && e < num_choices_; ++e) favoured[e] = probs[e] + favour.data[e];
        const float* ranking = favour ? favoured : probs;
        if (!rank(ranking, num_choices_, candidates, order)) {  // NaN selects all experts: it cannot go unnoticed
          std::fill(own, own + num_choices_, true);
          continue;
        }
        int64_t taken = experts_per_token_;
        if (by_mass) {
          const float level = levels.of(tokens[i]);
          // a level of 1 keeps every candidate, also where float32 rounds the mass before the last ones to 1
          const float limit = level >= 1 ? kNoLimit : shift.moved(level, normed.values(i), dim);
          if (routing_ == relu) {
            taken = count_positive(probs, order, num_choices_, limit);
          } else if (most_experts_ > 0 || sigmoid_) {
            const float ratio = most_experts_ > 0 ? ratios.of(tokens[i]) : 0;
            taken = count_candidates(probs, order, candidates, limit, ratio);
          } else {
            taken = count_by_mass(probs, order, num_choices_, limit);
          }
        }
        for (int64_t place = 0; place < taken; ++place) own[order[place]] = true;
        for (int64_t place = taken; place < num_choices_; ++place) probs[order[place]] = 0;
        if (renormalize_) divide_by_sum(probs, num_choices_, sigmoid_ ? kLeastMass : 0);
      }
    });
  }

  // bytes that could be read while one value is normed and quantised, or one expert is ranked
  static constexpr int64_t kCostOfValue = 16, kCostOfRank = 256;

  int64_t layer_;
  float eps_;
  bool parallel_;
  int64_t num_experts_, zeros_, copies_, constants_;
  int64_t num_choices_;  // E + Z
  int64_t hidden_, shared_hidden_;
  Routing routing_;
  int64_t experts_per_token_;
  bool renormalize_;
  float reach_;
  Precision precision_, shared_precision_;
  int64_t most_experts_;
  bool sigmoid_;
  ExpertForm form_;
  int64_t columns_;
};

const Registration<FeedForward> registration;

}  // namespace

}  // namespace adaptive
