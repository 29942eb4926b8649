// Where the tokens of a pass are in the cache of one layer.
//
// B batch, T time, N = B*T tokens, L layers. The place of a token is the number of tokens whose keys the layer held
// before its own. Mirrors `_cells` in `export/model/block.py`.
#pragma once

#include "../binding/operator.h"

namespace adaptive {

// What a token that skips a layer leaves in its cache.
enum class Policy : int64_t {
  every = 0,    // no token skips
  none = 1,     // nothing
  project = 2,  // its key and value
};

struct Places {
  int64_t batch = 0, time = 0;
  int64_t* place = nullptr;    // (N,), -1 where a token has none
  int32_t* running = nullptr;  // rows that run the layer, rising
  int32_t* writing = nullptr;  // rows whose key and value are written, rising
  int64_t* newest = nullptr;   // (B,), the last place of each sequence after this pass; -1 without any
  int64_t num_running = 0, num_writing = 0;

  int64_t sequence(int64_t row) const { return row / time; }
};

struct PlaceInputs {  // indices of inputs
  size_t runs, positions, lengths;
};

// Read runs (N, 1)?, positions (B, T) and lengths (L, B), and place the rows (N) of a layer.
Places places_of(const Call& call, const PlaceInputs& inputs, int64_t rows, int64_t layer, Policy policy,
                 Scratch& scratch);

}  // namespace adaptive
