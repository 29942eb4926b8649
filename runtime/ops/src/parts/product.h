// Products of rows with packed matrices. The layout is described in runtime/ops/layout.py.
#pragma once

#include <atomic>

#include "../kernels/kernels.h"
#include "../binding/operator.h"

namespace adaptive {

constexpr int64_t kMostWidth = int64_t{1} << 24;  // of any width that an attribute states
constexpr float kMostSoftcap = 1e6f;
constexpr int64_t kMostExperts = int64_t{1} << 16;

inline bool is_integer(Precision precision) { return precision == Precision::int8 || precision == Precision::int4; }

// Read a `precision` attribute: 0 fp32, 1 bf16, 2 int8, 3 int4.
Precision precision_of(const Attributes& attributes, const char* name);

// Return the first of `count` equal packed matrices, which follow each other in the input `index`.
Matrix matrix(const Call& call, size_t index, Precision precision, int64_t outputs, int64_t inputs, int64_t count = 1);

// Return matrix `number` of a stack.
inline Matrix nth(Matrix matrix, int64_t number) {
  matrix.data += number * matrix.bytes();
  return matrix;
}

// Rows of equal width, zero from the width to the end of the last block, and quantised where a product needs it.
class Rows {
 public:
  Rows(Scratch& scratch, int64_t count, int64_t inputs, bool integers);

  int64_t count() const { return count_; }
  int64_t stride() const { return (inputs_ + kBlock - 1) / kBlock * kBlock; }  // values from one row to the next
  float* values(int64_t i) const { return const_cast<float*>(rows_[i].values); }
  const Row* row(int64_t i) const { return &rows_[i]; }
  // Finish a row after its values are written.
  void quantize(int64_t i) const {
    if (integers_) kernels().quantize(rows_[i], inputs_);
  }

 private:
  int64_t count_, inputs_;
  bool integers_;
  Row* rows_;
};

// Return how much longer a product takes with some rows than with one, which is bound by reading the weights.
inline int64_t cost_of_rows(int64_t count) { return (count + 3) / 4; }

// Compute outputs of the groups first to last: out[r][n] = (W rows[r])[n]. The one place where weights are read.
void multiply(const Matrix& matrix, const Row* const* rows, int64_t num_rows, float* const* out, int64_t first,
              int64_t last, const Blocks* blocks = nullptr);

int64_t bytes_read();

}  // namespace adaptive
