// The logits of the last tokens of each sequence.
//
// B batch, T time, N = B*T tokens, D width, V vocabulary. Mirrors the end of `export/model/transformer.py`.
// Attributes: eps, added to the mean square; vocab V; precision.

#include "../parts/product.h"

namespace adaptive {

namespace {

class Logits {
 public:
  static constexpr const char* kName = "Logits";
  enum Input { x, norm, head, num_logits, ids };
  static constexpr Port kInputs[] = {
      {"x", Element::float32},        // (N, D)
      {"norm", Element::float32},     // (D,)
      {"head", Element::uint8},       // packed (V, D)
      {"num_logits", Element::int64}, // (), how many tokens of each sequence: 0 to T
      {"ids", Element::int64},        // (B, T), for its shape
  };
  enum Output { logits };
  static constexpr Port kOutputs[] = {{"logits", Element::float32}};  // (B, num_logits, V)

  explicit Logits(const Attributes& attributes)
      : eps_(attributes.real("eps", 0, 1)),
        vocab_(attributes.integer("vocab", 1, kMostWidth)),
        precision_(precision_of(attributes, "precision")) {}

  void run(Call& call) const {
    const auto shape = call.input<int64_t>(ids, {any, any});
    const int64_t batch = shape.shape[0], time = shape.shape[1];
    const auto states = call.input<float>(x, {any, any});
    const int64_t dim = states.shape[1];
    if (states.shape[0] != batch * time) {
      call.fail_input(x, "has " + std::to_string(states.shape[0]) + " rows, but ids has " +
                             std::to_string(batch * time) + " tokens");
    }
    const auto weight = call.input<float>(norm, {dim});
    const Matrix table = matrix(call, head, precision_, vocab_, dim);
    const int64_t wanted = *call.input<int64_t>(num_logits, {}).data;
    if (wanted < 0 || wanted > time) {
      call.fail_input(num_logits, "is " + std::to_string(wanted) + ", expected 0 to " + std::to_string(time));
    }
    const auto out = call.output<float>(logits, {batch, wanted, vocab_});

    Scratch scratch;
    const int64_t count = batch * wanted;
    const Rows rows(scratch, count, dim, is_integer(precision_));
    auto** row = scratch.take<const Row*>(count);
    auto** results = scratch.take<float*>(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = i / wanted * time + time - wanted + i % wanted;
      kernels().rms_norm(states.data + token * dim, weight.data, eps_, rows.values(i), dim);
      rows.quantize(i);
      row[i] = rows.row(i);
      results[i] = out.data + i * vocab_;
    }
    call.parallel(table.groups(), table.bytes() * cost_of_rows(count), [&](int64_t first, int64_t last) {
      multiply(table, row, count, results, first, last);
    });
  }

 private:
  float eps_;
  int64_t vocab_;
  Precision precision_;
};

const Registration<Logits> registration;

}  // namespace

}  // namespace adaptive
