// Products of a packed matrix with rows of inputs.
//
// A tile is a few rows times a group of 64 outputs (or 16 or 32 of them, where registers are few). An output is one
// chain of additions over the inputs in rising order, so its bits depend on nothing else in the tile.
//
// A matrix streams from memory. The processor fetches the next lines of a stream by itself, if they are read in order,
// scales first (int8 takes 1.3 times as long where they are not). It stops at the end of each 4 KiB page, so one line
// of each page is touched far ahead, which probably saves the wait for the page's translation: a single row then takes
// 0.70 (fp32) to 0.82 (int8) of the time. Fetching every line ahead was slower (with several rows twice as slow), and
// several groups at once no faster. For more rows than a tile has, the group is read again from the second cache: tiles
// that read each block in turn, or only some lanes of it, take 1.4 to 2 times as long.
#pragma once
#include "../simd/simd.h"
#include "kernels.h"

namespace adaptive {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kPage = 4096;
constexpr int64_t kAhead = 16 * kPage;  // from 64 to 512 KiB all distances are equal; 4 to 16 KiB are worse

// Each format multiplies one block: `sums` += the products of 32 inputs with LANES * 16 outputs, from `part` * 16 on.
struct Fp32 {
  static constexpr int64_t kBytes = 4 * kBlock * kGroup;
  static constexpr int kTileRows = kFloatRows, kTileLanes = kFloatLanes;

  template <int ROWS, int LANES>
  static ALWAYS_INLINE void block(const uint8_t* weights, const Row* const* rows, int64_t b, int part,
                                  F16 (&sums)[ROWS][LANES]) {
    const float* w = reinterpret_cast<const float*>(weights) + kLanes * part;
    const float* x[ROWS];
    for (int r = 0; r < ROWS; r++) x[r] = rows[r]->values + b * kBlock;
    for (int i = 0; i < kBlock; i++) {
      if (ROWS == 1) in_order();
      F16 column[LANES];
      for (int l = 0; l < LANES; l++) column[l] = load(w + i * kGroup + l * kLanes);
      for (int r = 0; r < ROWS; r++) {
        const F16 value = all(x[r][i]);
        for (int l = 0; l < LANES; l++) sums[r][l] = fma(column[l], value, sums[r][l]);
      }
    }
  }
};

struct Bf16 {
  static constexpr int64_t kBytes = 2 * kBlock * kGroup;
  static constexpr int kTileRows = kFloatRows, kTileLanes = kFloatLanes;

  template <int ROWS, int LANES>
  static ALWAYS_INLINE void block(const uint8_t* weights, const Row* const* rows, int64_t b, int part,
                                  F16 (&sums)[ROWS][LANES]) {
    const uint16_t* w = reinterpret_cast<const uint16_t*>(weights) + kLanes * part;
    const float* x[ROWS];
    for (int r = 0; r < ROWS; r++) x[r] = rows[r]->values + b * kBlock;
    for (int i = 0; i < kBlock; i++) {
      if (ROWS == 1) in_order();
      F16 column[LANES];
      for (int l = 0; l < LANES; l++) column[l] = load_bf16(w + i * kGroup + l * kLanes);
      for (int r = 0; r < ROWS; r++) {
        const F16 value = all(x[r][i]);
        for (int l = 0; l < LANES; l++) sums[r][l] = fma(column[l], value, sums[r][l]);
      }
    }
  }
};

struct Int8 {
  static constexpr int64_t kBytes = 2 * kGroup + kBlock * kGroup;
  static constexpr int kTileRows = kIntRows, kTileLanes = kIntLanes;

  template <int ROWS, int LANES>
  static ALWAYS_INLINE void block(const uint8_t* weights, const Row* const* rows, int64_t b, int part,
                                  F16 (&sums)[ROWS][LANES]) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(weights) + kLanes * part;
    const uint8_t* w = weights + 2 * kGroup + 4 * kLanes * part;
    const int8_t* x[ROWS];
    F16 scale[LANES];
    const auto load_scales = [&] {
      for (int l = 0; l < LANES; l++) scale[l] = load_half(scales + l * kLanes);
    };
    if (ROWS == 1) load_scales();  // in the order of the stream
    Int8Products products[ROWS][LANES];
    for (int r = 0; r < ROWS; r++) {
      x[r] = rows[r]->quantized + b * kBlock;
      for (int l = 0; l < LANES; l++) products[r][l] = Int8Products::start(rows[r]->sums[b]);
    }
    for (int step = 0; step < kBlock / 4; step++) {
      if (ROWS == 1) in_order();
      Int8Products::Weights column[LANES];
      for (int l = 0; l < LANES; l++) column[l] = Int8Products::load(w + 4 * (step * kGroup + l * kLanes));
      for (int r = 0; r < ROWS; r++) {
        const auto values = four(x[r] + 4 * step);
        for (int l = 0; l < LANES; l++) products[r][l].add(column[l], values);
      }
    }
    if (ROWS > 1) load_scales();  // where registers are free again
    for (int l = 0; l < LANES; l++)
      for (int r = 0; r < ROWS; r++)
        sums[r][l] = fma(products[r][l].finish(), scale[l] * all(rows[r]->scales[b]), sums[r][l]);
  }
};

struct Int4 {
  static constexpr int64_t kBytes = 3 * kGroup + kBlock * kGroup / 2;
  static constexpr int kTileRows = kInt4Rows, kTileLanes = kIntLanes;

  template <int ROWS, int LANES>
  static ALWAYS_INLINE void block(const uint8_t* weights, const Row* const* rows, int64_t b, int part,
                                  F16 (&sums)[ROWS][LANES]) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(weights) + kLanes * part;
    const uint8_t* zeros = weights + 2 * kGroup + kLanes * part;
    const uint8_t* w = weights + 3 * kGroup + 4 * kLanes * part;
    const int8_t* x[ROWS];
    F16 scale[LANES];
    I16 zero[LANES];
    const auto load_scales = [&] {
      for (int l = 0; l < LANES; l++) scale[l] = load_half(scales + l * kLanes);
      for (int l = 0; l < LANES; l++) zero[l] = load_bytes(zeros + l * kLanes);
    };
    if (ROWS == 1) load_scales();
    using Products = Int4Products<(ROWS > 1)>;
    Products products[ROWS][LANES];
    for (int r = 0; r < ROWS; r++) {
      x[r] = rows[r]->quantized + b * kBlock;
      for (int l = 0; l < LANES; l++) products[r][l] = Products::start();
    }
    for (int step = 0; step < kBlock / 8; step++) {
      if (ROWS == 1) in_order();
      typename Products::Weights column[LANES];
      for (int l = 0; l < LANES; l++) column[l] = Products::load(w + 4 * (step * kGroup + l * kLanes));
      for (int r = 0; r < ROWS; r++) {
        const auto low = four(x[r] + 8 * step), high = four(x[r] + 8 * step + 4);
        for (int l = 0; l < LANES; l++) products[r][l].add(column[l], low, high);
      }
    }
    if (ROWS > 1) load_scales();
    for (int l = 0; l < LANES; l++) {
      for (int r = 0; r < ROWS; r++) {
        // the products count sixteenths of a step, as the zero points do
        const F16 factor = scale[l] * all(rows[r]->scales[b] * 0.0625f);
        sums[r][l] = fma(products[r][l].finish(zero[l], rows[r]->sums[b]), factor, sums[r][l]);
      }
    }
  }
};

template <class Format, int ROWS, int LANES>
ALWAYS_INLINE void tile(const Matrix& matrix, const Row* const* rows, float* const* out, int64_t group,
                        const Blocks* blocks) {
  const uint8_t* stream = matrix.data + group * matrix.blocks() * Format::kBytes;
  const int64_t count = blocks ? blocks->count : matrix.blocks();
  for (int part = 0; part < kGroup / kLanes; part += LANES) {
    F16 sums[ROWS][LANES];
    for (auto& row : sums)
      for (F16& lanes : row) lanes = zero();
    for (int64_t i = 0; i < count; i++) {
      const int64_t b = blocks ? blocks->index[i] : i;
      const uint8_t* weights = stream + b * Format::kBytes;
      for (int64_t page = 0; page < Format::kBytes; page += kPage) touch(weights + kAhead + page);
      Format::template block<ROWS, LANES>(weights, rows, b, part, sums);
    }
    for (int r = 0; r < ROWS; r++)
      for (int l = 0; l < LANES; l++) {
        const int64_t output = group * kGroup + (part + l) * kLanes, left = matrix.outputs - output;
        if (left >= kLanes)
          store(out[r] + output, sums[r][l]);
        else if (left > 0)
          store_first(out[r] + output, sums[r][l], left);
      }
  }
}

// The rows that are left over, fewer than a tile has.
template <class Format, int ROWS>
ALWAYS_INLINE void rest(const Matrix& matrix, const Row* const* rows, int64_t num_rows, float* const* out,
                        int64_t group, const Blocks* blocks) {
  if constexpr (ROWS > 0) {
    if (num_rows == ROWS)
      tile<Format, ROWS, ROWS == 1 ? 4 : Format::kTileLanes>(matrix, rows, out, group, blocks);
    else
      rest<Format, ROWS - 1>(matrix, rows, num_rows, out, group, blocks);
  }
}

template <class Format>
void multiply_format(const Matrix& matrix, const Row* const* rows, int64_t num_rows, float* const* out, int64_t first,
                     int64_t last, const Blocks* blocks) {
  constexpr int kRows = Format::kTileRows;
  for (int64_t group = first; group < last; group++) {
    int64_t r = 0;
    for (; r + kRows <= num_rows; r += kRows)
      tile<Format, kRows, Format::kTileLanes>(matrix, rows + r, out + r, group, blocks);
    rest<Format, kRows - 1>(matrix, rows + r, num_rows - r, out + r, group, blocks);
  }
}

void multiply(const Matrix& matrix, const Row* const* rows, int64_t num_rows, float* const* out, int64_t first,
              int64_t last, const Blocks* blocks) {
  switch (matrix.precision) {
    case Precision::fp32: return multiply_format<Fp32>(matrix, rows, num_rows, out, first, last, blocks);
    case Precision::bf16: return multiply_format<Bf16>(matrix, rows, num_rows, out, first, last, blocks);
    case Precision::int8: return multiply_format<Int8>(matrix, rows, num_rows, out, first, last, blocks);
    case Precision::int4: return multiply_format<Int4>(matrix, rows, num_rows, out, first, last, blocks);
  }
}

void quantize(Row& row, int64_t inputs) {
  for (int64_t b = 0; b < (inputs + kBlock - 1) / kBlock; b++) {
    const F16 low = load(row.values + b * kBlock), high = load(row.values + b * kBlock + kLanes);
    // Compared as integers, magnitudes keep their order and a NaN is the greatest: it reaches every output of the row.
    const int32_t pattern = max_lane(max(bits(abs(low)), bits(abs(high))));
    float greatest;
    __builtin_memcpy(&greatest, &pattern, 4);
    // codes of 0 under a scale of 0, infinity or NaN, which gives 0 or NaN
    const bool usable = greatest >= 0x1p-100f && greatest <= 0x1.fffffep127f;
    const F16 factor = all(127.0f / greatest);
    const I16 q_low = usable ? to_int(low * factor) : all_int(0), q_high = usable ? to_int(high * factor) : all_int(0);
    store_bytes(row.quantized + b * kBlock, q_low);
    store_bytes(row.quantized + b * kBlock + kLanes, q_high);
    row.scales[b] = greatest < 0x1p-100f ? 0.0f : greatest / 127.0f;
    row.sums[b] = sum(q_low + q_high);
  }
}

// The weights of one output, taken out of the stream one by one.
void matrix_row(const Matrix& matrix, int64_t output, float* into) {
  const int64_t bytes = matrix.block_bytes(), lane = output % kGroup;
  const uint8_t* stream = matrix.data + output / kGroup * matrix.blocks() * bytes;
  for (int64_t k = 0; k < matrix.inputs; k++) {
    const uint8_t* block = stream + k / kBlock * bytes;
    const int64_t i = k % kBlock;
    if (matrix.precision == Precision::fp32) {
      into[k] = reinterpret_cast<const float*>(block)[i * kGroup + lane];
    } else if (matrix.precision == Precision::bf16) {
      const uint32_t pattern = reinterpret_cast<const uint16_t*>(block)[i * kGroup + lane];
      const uint32_t wide = pattern << 16;
      __builtin_memcpy(into + k, &wide, 4);
    } else {
      float scale[kLanes];
      store(scale, load_half(reinterpret_cast<const uint16_t*>(block) + lane / kLanes * kLanes));
      const float s = scale[lane % kLanes];
      if (matrix.precision == Precision::int8) {
        into[k] = static_cast<float>(block[2 * kGroup + (i / 4 * kGroup + lane) * 4 + i % 4] - 128) * s;
      } else {
        const uint8_t pair = block[3 * kGroup + (i / 8 * kGroup + lane) * 4 + i % 4];
        const int code = i % 8 < 4 ? pair & 15 : pair >> 4;
        into[k] = (static_cast<float>(code) - static_cast<float>(block[2 * kGroup + lane]) * 0.0625f) * s;
      }
    }
  }
}

}  // namespace
}  // namespace adaptive
