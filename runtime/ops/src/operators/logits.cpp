// The logits of some of the tokens.
//
// N tokens, R of them with logits, D width, V vocabulary. Mirrors `export/model/output_head.py`.
// Attributes: eps, added to the mean square or the variance; softcap c, after which a logit is c tanh(logit / c), 0:
// none; vocab V; precision.

#include "../parts/norm.h"
#include "../parts/product.h"

namespace adaptive {

namespace {

class Logits {
 public:
  static constexpr const char* kName = "Logits";
  enum Input { x, norm, norm_bias, head, logit_rows };
  static constexpr Port kInputs[] = {
      {"x", Element::float32},                    // (N, D)
      {"norm", Element::float32},                 // (D,)
      {"norm_bias", Element::float32, optional},  // (D,), of LayerNorm
      {"head", Element::uint8},                   // packed (V, D)
      {"logit_rows", Element::int64},             // (R,), numbers of tokens
  };
  enum Output { logits };
  static constexpr Port kOutputs[] = {{"logits", Element::float32}};  // (R, V)

  explicit Logits(const Attributes& attributes)
      : eps_(attributes.real("eps", 0, 1)),
        softcap_(attributes.real("softcap", 0, kMostSoftcap)),
        vocab_(attributes.integer("vocab", 1, kMostWidth)),
        precision_(precision_of(attributes, "precision")) {}

  void run(Call& call) const {
    const auto states = call.input<float>(x, {any, any});
    const int64_t tokens = states.shape[0], dim = states.shape[1];
    const Norm final_norm(call, norm, norm_bias, dim, eps_);
    const Matrix table = matrix(call, head, precision_, vocab_, dim);
    const auto wanted = call.input<int64_t>(logit_rows, {any});
    const int64_t count = wanted.shape[0];
    for (int64_t i = 0; i < count; ++i) {
      if (wanted.data[i] < 0 || wanted.data[i] >= tokens) {
        call.fail_input(logit_rows, "holds " + std::to_string(wanted.data[i]) + ", expected 0 to " +
                                        std::to_string(tokens - 1));
      }
    }
    const auto out = call.output<float>(logits, {count, vocab_});

    Scratch scratch;
    const Rows rows(scratch, count, dim, is_integer(precision_));
    auto** row = scratch.take<const Row*>(count);
    auto** results = scratch.take<float*>(count);
    for (int64_t i = 0; i < count; ++i) {
      final_norm.apply(states.data + wanted.data[i] * dim, rows.values(i));
      rows.quantize(i);
      row[i] = rows.row(i);
      results[i] = out.data + i * vocab_;
    }
    call.parallel(table.groups(), table.bytes() * cost_of_rows(count), [&](int64_t first, int64_t last) {
      multiply(table, row, count, results, first, last);
      const int64_t begin = first * kGroup, end = std::min(last * kGroup, vocab_);
      for (int64_t i = 0; softcap_ > 0 && i < count; ++i) kernels().softcap(results[i] + begin, softcap_, end - begin);
    });
  }

 private:
  float eps_, softcap_;
  int64_t vocab_;
  Precision precision_;
};

const Registration<Logits> registration;

}  // namespace

}  // namespace adaptive
