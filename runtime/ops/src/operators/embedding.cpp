// The embedding of tokens: rows of a packed matrix, which may be that of the output head.
//
// B batch, T time, N = B*T tokens, D width, V vocabulary. Mirrors `_embed` in `export/model/transformer.py`.
// Attributes: dim D; vocab V; precision.

#include "../parts/product.h"

namespace adaptive {

namespace {

class Embedding {
 public:
  static constexpr const char* kName = "Embedding";
  enum Input { ids, table };
  static constexpr Port kInputs[] = {
      {"ids", Element::int64},    // (B, T)
      {"table", Element::uint8},  // packed (V, D)
  };
  enum Output { x };
  static constexpr Port kOutputs[] = {{"x", Element::float32}};  // (N, D)

  explicit Embedding(const Attributes& attributes)
      : dim_(attributes.integer("dim", 1, kMostWidth)),
        vocab_(attributes.integer("vocab", 1, kMostWidth)),
        precision_(precision_of(attributes, "precision")) {}

  void run(Call& call) const {
    const auto tokens = call.input<int64_t>(ids, {any, any});
    const Matrix rows = matrix(call, table, precision_, vocab_, dim_);
    const int64_t count = tokens.size();
    for (int64_t n = 0; n < count; ++n) {
      const int64_t id = tokens.data[n];
      if (id < 0 || id >= vocab_) {
        call.fail_input(ids, "holds " + std::to_string(id) + ", expected 0 to " + std::to_string(vocab_ - 1));
      }
    }
    const auto out = call.output<float>(x, {count, dim_});
    call.parallel(count, count * dim_ * kCostOfValue, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) kernels().matrix_row(rows, tokens.data[n], out.data + n * dim_);
    });
  }

 private:
  // a row is scattered over the stream of its group: each value costs a cache line
  static constexpr int64_t kCostOfValue = 64;

  int64_t dim_, vocab_;
  Precision precision_;
};

const Registration<Embedding> registration;

}  // namespace

}  // namespace adaptive
