// What the tests call: each kernel of a named table. No operator uses these.
#include <vector>

#include "kernels.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

using adaptive::Activation;
using adaptive::Blocks;
using adaptive::Kernels;
using adaptive::kernels_named;
using adaptive::Matrix;
using adaptive::Precision;
using adaptive::Row;

// 1 if the named table can run here.
EXPORTED int adaptive_ops_has(const char* kernel) { return kernels_named(kernel) != nullptr; }

// out (num_rows, outputs) = rows (num_rows, inputs padded to 32) times the matrix, for the groups [first, last).
EXPORTED void adaptive_ops_multiply(const char* kernel, int64_t precision, int64_t outputs, int64_t inputs,
                                    const uint8_t* data, const float* values, int64_t num_rows, float* out,
                                    int64_t first, int64_t last, const int32_t* blocks, int64_t num_blocks) {
  const Kernels& table = *kernels_named(kernel);
  const Matrix matrix{static_cast<Precision>(precision), outputs, inputs, data};
  const int64_t each = matrix.blocks(), width = each * adaptive::kBlock;
  std::vector<int8_t> quantized(num_rows * width);
  std::vector<float> scales(num_rows * each);
  std::vector<int32_t> sums(num_rows * each);
  std::vector<Row> rows(num_rows);
  std::vector<const Row*> row_pointers(num_rows);
  std::vector<float*> out_pointers(num_rows);
  for (int64_t r = 0; r < num_rows; r++) {
    rows[r] = {values + r * width, quantized.data() + r * width, scales.data() + r * each, sums.data() + r * each};
    if (matrix.precision == Precision::int8 || matrix.precision == Precision::int4) table.quantize(rows[r], inputs);
    row_pointers[r] = &rows[r];
    out_pointers[r] = out + r * outputs;
  }
  const Blocks active{blocks, num_blocks};
  table.multiply(matrix, row_pointers.data(), num_rows, out_pointers.data(), first, last, blocks ? &active : nullptr);
}

EXPORTED void adaptive_ops_quantize(const char* kernel, const float* values, int64_t inputs, int8_t* quantized,
                                    float* scales, int32_t* sums) {
  Row row{values, quantized, scales, sums};
  kernels_named(kernel)->quantize(row, inputs);
}

EXPORTED void adaptive_ops_matrix_row(const char* kernel, int64_t precision, int64_t outputs, int64_t inputs,
                                      const uint8_t* data, int64_t output, float* into) {
  kernels_named(kernel)->matrix_row({static_cast<Precision>(precision), outputs, inputs, data}, output, into);
}

EXPORTED void adaptive_ops_rms_norm(const char* kernel, const float* x, const float* weight, float eps, float* out,
                                    int64_t n) {
  kernels_named(kernel)->rms_norm(x, weight, eps, out, n);
}

EXPORTED void adaptive_ops_layer_norm(const char* kernel, const float* x, const float* weight, const float* bias,
                                      float eps, float* out, int64_t n) {
  kernels_named(kernel)->layer_norm(x, weight, bias, eps, out, n);
}

EXPORTED void adaptive_ops_softcap(const char* kernel, float* x, float cap, int64_t n) {
  kernels_named(kernel)->softcap(x, cap, n);
}

EXPORTED void adaptive_ops_rotate(const char* kernel, float* head, const float* cos, const float* sin,
                                  int64_t head_dim) {
  kernels_named(kernel)->rotate(head, cos, sin, head_dim);
}

EXPORTED float adaptive_ops_dot(const char* kernel, const float* a, const float* b, int64_t n) {
  return kernels_named(kernel)->dot(a, b, n);
}

EXPORTED void adaptive_ops_add_scaled(const char* kernel, float* y, const float* x, float factor, int64_t n) {
  kernels_named(kernel)->add_scaled(y, x, factor, n);
}

EXPORTED void adaptive_ops_activate(const char* kernel, int64_t activation, const float* gate, const float* up,
                                    float factor, float* out, int64_t n) {
  kernels_named(kernel)->activate(static_cast<Activation>(activation), gate, up, factor, out, n);
}

EXPORTED void adaptive_ops_sigmoid(const char* kernel, float* x, int64_t n) { kernels_named(kernel)->sigmoid(x, n); }

EXPORTED void adaptive_ops_exponential(const char* kernel, float* x, float factor, int64_t n) {
  kernels_named(kernel)->exponential(x, factor, n);
}

EXPORTED float adaptive_ops_softmax(const char* kernel, float* x, int64_t n) {
  return kernels_named(kernel)->softmax(x, n);
}
