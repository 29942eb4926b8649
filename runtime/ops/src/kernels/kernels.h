// The table of kernels: the arithmetic of the operators, one instance for each instruction set.
//
// All instances give the same bits, and a row's result does not depend on how many rows or groups are computed with it.
#pragma once
#include <cstdint>

#ifndef ALWAYS_INLINE
#define ALWAYS_INLINE inline __attribute__((always_inline))
#endif

namespace adaptive {

constexpr int64_t kGroup = 64;  // outputs of a group
constexpr int64_t kBlock = 32;  // inputs of a block, which share a scale in int8 and int4

enum class Precision : int64_t { fp32 = 0, bf16 = 1, int8 = 2, int4 = 3 };
enum class Activation : int64_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3 };

// A packed matrix, W in y = W x; runtime/ops/layout.py describes the bytes.
struct Matrix {
  Precision precision;
  int64_t outputs, inputs;
  const uint8_t* data;

  // Always inline: table.cpp may define nothing that the linker could merge with code for other processors.
  ALWAYS_INLINE int64_t groups() const { return (outputs + kGroup - 1) / kGroup; }
  ALWAYS_INLINE int64_t blocks() const { return (inputs + kBlock - 1) / kBlock; }
  ALWAYS_INLINE int64_t block_bytes() const {
    switch (precision) {
      case Precision::fp32: return 4 * kBlock * kGroup;
      case Precision::bf16: return 2 * kBlock * kGroup;
      case Precision::int8: return 2 * kGroup + kBlock * kGroup;
      case Precision::int4: return 3 * kGroup + kBlock * kGroup / 2;
    }
    return 0;
  }
  ALWAYS_INLINE int64_t bytes() const { return groups() * blocks() * block_bytes(); }
};

// One input vector. `quantize` fills what int8 and int4 matrices multiply by; fp32 and bf16 read only the values.
struct Row {
  const float* values;  // `inputs` values, padded with zeros to a multiple of 32
  int8_t* quantized;    // as many bytes
  float* scales;        // one of each block: values = scale * quantized
  int32_t* sums;        // of each block's quantized
};

// Blocks of 32 inputs that are multiplied, in rising order; the inputs of the others count as zero.
struct Blocks {
  const int32_t* index;
  int64_t count;
};

// Defined in attend_task.h.
struct AttendTask;
struct CacheHead;

// Defined in recur_task.h.
struct RecurTask;
struct ConvolveTask;

struct Kernels {
  const char* name;

  // Quantise a row to int8: a block's scale is its greatest magnitude / 127, or 0 where that is below 2^-100.
  void (*quantize)(Row& row, int64_t inputs);

  // out[r][n] = (W row_r)[n] for groups [first, last) of 64 outputs; only n < outputs is written. `blocks` null: all.
  void (*multiply)(const Matrix& matrix, const Row* const* rows, int64_t num_rows, float* const* out, int64_t first,
                   int64_t last, const Blocks* blocks);

  // Write the weights of one output, `inputs` floats.
  void (*matrix_row)(const Matrix& matrix, int64_t output, float* into);

  // out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t n);

  // out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias; out may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t n);

  // x = cap * tanh(x / cap)
  void (*softcap)(float* x, float cap, int64_t n);

  // Turn the pairs (head[i], head[i + n / 2]) of the first n components by n / 2 angles, given as cosines and sines.
  void (*rotate)(float* head, const float* cos, const float* sin, int64_t n);

  float (*dot)(const float* a, const float* b, int64_t n);

  // y += factor * x, rounded once.
  void (*add_scaled)(float* y, const float* x, float factor, int64_t n);

  // out = act(gate) * up * factor, without up act(gate) * factor; out may be gate or up.
  void (*activate)(Activation activation, const float* gate, const float* up, float factor, float* out, int64_t n);

  // x = 1 / (1 + e^-x)
  void (*sigmoid)(float* x, int64_t n);

  // x = e^(factor x)
  void (*exponential)(float* x, float factor, int64_t n);

  // x = e^(x - max(x)); returns the sum, by which the caller divides.
  float (*softmax)(float* x, int64_t n);

  void (*attend)(const AttendTask& task);

  // Write a key and a value, head_dim floats each, to a cell of the cache.
  void (*write_cell)(const CacheHead& cache, int64_t cell, const float* key, const float* value);

  // Take a head of a recurrent mixer through the tokens of a task.
  void (*recur)(const RecurTask& task);

  // Convolve channels [first, last), first a multiple of 16, over the rows of a task.
  void (*convolve)(const ConvolveTask& task, int64_t first, int64_t last);
};

// The fastest table that this processor runs, or the one that the environment variable ADAPTIVE_KERNEL names.
const Kernels& kernels();

// The table of that name; null if this library or this processor does not have it.
const Kernels* kernels_named(const char* name);

}  // namespace adaptive
