// The embedding of tokens: rows of a packed matrix, which may be that of the output head, scaled, and learned positions.
//
// B batch, T time, N = B*T tokens, D width, V vocabulary. Mirrors `export/model/embedding.py`.
// Attributes: scale, the factor of a row; dim D; vocab V; precision.

#include <algorithm>

#include "../parts/product.h"

namespace adaptive {

namespace {

class Embedding {
 public:
  static constexpr const char* kName = "Embedding";
  enum Input { ids, table, positions, learned_positions };
  static constexpr Port kInputs[] = {
      {"ids", Element::int64},                            // (B, T)
      {"table", Element::uint8},                          // packed (V, D)
      {"positions", Element::int64, optional},            // (B, T), places in the text, of learned positions
      {"learned_positions", Element::float32, optional},  // (context, D), added to the embedded tokens
  };
  enum Output { x };
  static constexpr Port kOutputs[] = {{"x", Element::float32}};  // (N, D)

  explicit Embedding(const Attributes& attributes)
      : scale_(attributes.real("scale", 0, kMostScale)),
        dim_(attributes.integer("dim", 1, kMostWidth)),
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
    const auto places = call.input<int64_t>(positions, {tokens.shape[0], tokens.shape[1]});
    const auto vectors = call.input<float>(learned_positions, {any, dim_});
    if (bool(places) != bool(vectors)) call.fail("the inputs positions and learned_positions come together");
    for (int64_t n = 0; vectors && n < count; ++n) {
      if (places.data[n] < 0 || places.data[n] >= vectors.shape[0]) {
        call.fail_input(positions, "holds " + std::to_string(places.data[n]) + ", but learned_positions has " +
                                       std::to_string(vectors.shape[0]) + " rows");
      }
    }
    const auto out = call.output<float>(x, {count, dim_});
    call.parallel(count, count * dim_ * kCostOfValue, [&](int64_t first, int64_t last) {
      Scratch scratch;
      float* row = scratch.take<float>(dim_);
      for (int64_t n = first; n < last; ++n) {
        float* own = out.data + n * dim_;
        if (!vectors && scale_ == 1) {
          kernels().matrix_row(rows, tokens.data[n], own);
          continue;
        }
        kernels().matrix_row(rows, tokens.data[n], row);
        if (vectors) {
          std::copy_n(vectors.data + places.data[n] * dim_, dim_, own);
        } else {
          std::fill_n(own, dim_, 0.0f);
        }
        kernels().add_scaled(own, row, scale_, dim_);
      }
    });
  }

 private:
  // a row is scattered over the stream of its group: each value costs a cache line
  static constexpr int64_t kCostOfValue = 64;

  static constexpr float kMostScale = 1e6f;

  float scale_;
  int64_t dim_, vocab_;
  Precision precision_;
};

const Registration<Embedding> registration;

}  // namespace

}  // namespace adaptive
