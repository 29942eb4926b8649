// Early exits: which tokens leave after a layer, because the model is sure enough of their next token.
//
// B batch, N = B*T tokens, D width, V vocabulary, L layers. Mirrors `_exits` in `export/model/transformer.py` and
// `export/model/routing/exits.py`. Only tokens that are here, and whose threshold is below 1, compute a confidence.
// Attributes: layer, the row of exit_threshold and what a leaving token reports; eps, added to the mean square or
// the variance; criterion; softcap, vocab V and precision, of the head as in Logits.

#include "../parts/levels.h"
#include "../parts/norm.h"
#include "../parts/product.h"

namespace adaptive {

namespace {

class Exit {
 public:
  static constexpr const char* kName = "Exit";
  enum Input { x, alive, exit_layer, exit_threshold, norm, norm_bias, weight, bias, head };
  static constexpr Port kInputs[] = {
      {"x", Element::float32},                 // (N, D)
      {"alive", Element::boolean, optional},   // (N, 1); absent: every token is here
      {"exit_layer", Element::int64, optional},  // (N, 1) of the tokens that left before; absent: -1
      {"exit_threshold", Element::float32},    // (L, B)
      {"norm", Element::float32},              // (D,)
      {"norm_bias", Element::float32, optional},  // (D,), of LayerNorm
      {"weight", Element::float32, optional},  // (D,), of the criterion `router`
      {"bias", Element::float32, optional},    // (1,)
      {"head", Element::uint8, optional},      // packed (V, D), of the other criteria
  };
  enum Output { alive_after, exit_layer_after };
  static constexpr Port kOutputs[] = {
      {"alive", Element::boolean},     // (N, 1)
      {"exit_layer", Element::int64},  // (N, 1)
  };
  enum Criterion { top_prob, margin, entropy, router };

  explicit Exit(const Attributes& attributes)
      : layer_(attributes.integer("layer", 0, kMostLayers)),
        eps_(attributes.real("eps", 0, 1)),
        criterion_(static_cast<Criterion>(attributes.integer("criterion", top_prob, router))),
        softcap_(attributes.real("softcap", 0, kMostSoftcap)),
        vocab_(attributes.integer("vocab", 2, kMostWidth)),
        precision_(precision_of(attributes, "precision")) {}

  void run(Call& call) const {
    const auto states = call.input<float>(x, {any, any});
    const int64_t count = states.shape[0], dim = states.shape[1];
    const auto here = call.input<bool>(alive, {count, 1});
    const auto left = call.input<int64_t>(exit_layer, {count, 1});
    const Levels thresholds(call, exit_threshold, layer_, count);
    const Norm final_norm(call, norm, norm_bias, dim, eps_);
    const auto stays = call.output<bool>(alive_after, {count, 1});
    const auto layers = call.output<int64_t>(exit_layer_after, {count, 1});

    Scratch scratch;
    auto* asked = scratch.take<int64_t>(count);
    int64_t num_asked = 0;
    for (int64_t n = 0; n < count; ++n) {
      stays.data[n] = !here || here.data[n];
      layers.data[n] = left ? left.data[n] : -1;
      if (stays.data[n] && thresholds.of(n) < 1) asked[num_asked++] = n;
    }
    const auto leave = [&](int64_t n, float sure) {
      if (!(sure > thresholds.of(n))) return;
      stays.data[n] = false;
      layers.data[n] = layer_;
    };
    if (criterion_ == router) {
      ask_router(call, states.data, dim, final_norm, asked, num_asked, leave);
    } else {
      ask_head(call, states.data, dim, final_norm, asked, num_asked, leave);
    }
  }

 private:
  // sigmoid(w . norm(x) + b)
  template <class Leave>
  void ask_router(const Call& call, const float* states, int64_t dim, const Norm& final_norm, const int64_t* asked,
                  int64_t num_asked, const Leave& leave) const {
    const auto scorer = call.input<float>(weight, {dim});
    const auto offset = call.input<float>(bias, {1});
    if (!scorer || !offset) call.fail("criterion 3 (router) needs the inputs weight and bias");
    Scratch scratch;
    auto* normed = scratch.take<float>(dim);
    for (int64_t i = 0; i < num_asked; ++i) {
      final_norm.apply(states + asked[i] * dim, normed);
      leave(asked[i], sigmoid(kernels().dot(normed, scorer.data, dim) + *offset.data));
    }
  }

  // the confidence of the logits that a token would have here
  template <class Leave>
  void ask_head(const Call& call, const float* states, int64_t dim, const Norm& final_norm, const int64_t* asked,
                int64_t num_asked, const Leave& leave) const {
    const Matrix table = matrix(call, head, precision_, vocab_, dim);
    for (int64_t start = 0; start < num_asked; start += kRowsAtOnce) {
      const int64_t num_rows = std::min(kRowsAtOnce, num_asked - start);
      Scratch scratch;
      const Rows rows(scratch, num_rows, dim, is_integer(precision_));
      auto** row = scratch.take<const Row*>(num_rows);
      auto** logits = scratch.take<float*>(num_rows);
      for (int64_t i = 0; i < num_rows; ++i) {
        final_norm.apply(states + asked[start + i] * dim, rows.values(i));
        rows.quantize(i);
        row[i] = rows.row(i);
        logits[i] = scratch.take<float>(vocab_);
      }
      call.parallel(table.groups(), table.bytes() * cost_of_rows(num_rows), [&](int64_t first, int64_t last) {
        multiply(table, row, num_rows, logits, first, last);
      });
      call.parallel(num_rows, num_rows * vocab_ * kCostOfConfidence, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          if (softcap_ > 0) kernels().softcap(logits[i], softcap_, vocab_);
          leave(asked[start + i], confidence(logits[i]));
        }
      });
    }
  }

  // Compute the confidence of logits (V,) in 0..1. They are overwritten.
  float confidence(float* logits) const {
    if (criterion_ == entropy) {
      Scratch scratch;
      auto* powers = scratch.take<float>(vocab_);
      const float most = *std::max_element(logits, logits + vocab_);
      for (int64_t i = 0; i < vocab_; ++i) powers[i] = logits[i] -= most;
      const float sum = kernels().softmax(powers, vocab_);
      // sum of p log p, with p = power / sum and log p = logit - log(sum)
      const double negative = kernels().dot(powers, logits, vocab_) / sum - std::log(static_cast<double>(sum));
      return static_cast<float>(1.0 + negative / std::log(static_cast<double>(vocab_)));
    }
    const float sum = kernels().softmax(logits, vocab_);  // the greatest is now 1
    if (criterion_ == top_prob) return 1.0f / sum;
    float first = -1, second = -1;
    for (int64_t i = 0; i < vocab_; ++i) {
      second = std::max(second, std::min(first, logits[i]));
      first = std::max(first, logits[i]);
    }
    return first / sum - second / sum;
  }

  static constexpr int64_t kRowsAtOnce = 32;
  static constexpr int64_t kCostOfConfidence = 16;

  int64_t layer_;
  float eps_;
  Criterion criterion_;
  float softcap_;
  int64_t vocab_;
  Precision precision_;
};

const Registration<Exit> registration;

}  // namespace

}  // namespace adaptive
