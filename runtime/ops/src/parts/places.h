// Where the tokens of a pass are in the cache of one layer.
//
// N tokens, B rows of ids with N / B tokens each, S slots, L layers. A slot holds one sequence: its tokens stand in the
// order of its text, anywhere among those of the others. The place of a token is the number of tokens of its slot whose
// keys the layer held before its own. Mirrors `_cells` in `export/model/block.py`.
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
  int64_t num_slots = 0;
  int64_t* place = nullptr;    // (N,), -1 where a token has none
  int32_t* running = nullptr;  // tokens that run the layer, rising
  int32_t* writing = nullptr;  // tokens whose key and value are written, rising
  int64_t* newest = nullptr;   // (S,), the last place of each slot after this pass; -1 without any
  int64_t num_running = 0, num_writing = 0;

  int64_t slot(int64_t token) const { return slots[token / time]; }

  const int64_t* slots = nullptr;  // (B,)
  int64_t time = 1;                // N / B
};

struct PlaceInputs {  // indices of inputs
  size_t runs, slots, lengths;
};

// Read runs (N, 1)?, slots (B,) and lengths (L, S), and place the tokens (N) of a layer.
Places places_of(const Call& call, const PlaceInputs& inputs, int64_t tokens, int64_t layer, Policy policy,
                 Scratch& scratch);

}  // namespace adaptive
