#include "product.h"

namespace adaptive {

namespace {

std::atomic<int64_t> read{0};

}  // namespace

Precision precision_of(const Attributes& attributes, const char* name) {
  return static_cast<Precision>(attributes.integer(name, 0, 3));
}

Matrix matrix(const Call& call, size_t index, Precision precision, int64_t outputs, int64_t inputs, int64_t count) {
  Matrix result{precision, outputs, inputs, nullptr};
  // widths are at most 2^24 and stacks 2^16, so that one matrix cannot overflow but a stack can
  const int64_t one = result.bytes();
  const int64_t expected = one > std::numeric_limits<int64_t>::max() / count ? -1 : one * count;
  const Tensor<const uint8_t> bytes = call.input<uint8_t>(index);
  if (!bytes) call.fail_input(index, "is missing");
  if (bytes.rank != 1 || bytes.shape[0] != expected) {
    constexpr const char* names[] = {"fp32", "bf16", "int8", "int4"};
    call.fail_input(index, "has " + std::to_string(bytes.size()) + " bytes, expected a vector of " +
                               std::to_string(expected) + ": " + std::to_string(count) + " " +
                               names[static_cast<int64_t>(precision)] + " matrices of " + std::to_string(outputs) +
                               " outputs and " + std::to_string(inputs) + " inputs");
  }
  result.data = bytes.data;
  return result;
}

Rows::Rows(Scratch& scratch, int64_t count, int64_t inputs, bool integers)
    : count_(count), inputs_(inputs), integers_(integers), rows_(scratch.take<Row>(count)) {
  const int64_t blocks = (inputs + kBlock - 1) / kBlock, width = blocks * kBlock;
  float* values = scratch.take<float>(count * width);
  int8_t* quantized = integers ? scratch.take<int8_t>(count * width) : nullptr;
  float* scales = integers ? scratch.take<float>(count * blocks) : nullptr;
  int32_t* sums = integers ? scratch.take<int32_t>(count * blocks) : nullptr;
  for (int64_t i = 0; i < count; ++i) {
    float* own = values + i * width;
    for (int64_t j = inputs; j < width; ++j) own[j] = 0;
    rows_[i] = integers ? Row{own, quantized + i * width, scales + i * blocks, sums + i * blocks}
                        : Row{own, nullptr, nullptr, nullptr};
  }
}

void multiply(const Matrix& matrix, const Row* const* rows, int64_t num_rows, float* const* out, int64_t first,
              int64_t last, const Blocks* blocks) {
  if (num_rows == 0 || first >= last) return;
  kernels().multiply(matrix, rows, num_rows, out, first, last, blocks);
  const int64_t count = blocks == nullptr ? matrix.blocks() : blocks->count;
  read.fetch_add((last - first) * count * matrix.block_bytes(), std::memory_order_relaxed);
}

int64_t bytes_read() { return read.load(std::memory_order_relaxed); }

}  // namespace adaptive
