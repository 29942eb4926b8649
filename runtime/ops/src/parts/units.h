// The queries of a pass, cut into units of work: some tokens of one slot, and one key/value head.
//
// M tokens run the layer, K key/value heads.
#pragma once

#include "cache.h"

namespace adaptive {

struct Unit {
  int64_t first, count;  // of `Units::order`
  int64_t slot, kv_head;
};

struct Units {
  int32_t* order;  // (M,): indices of running tokens, those of a slot together in the order of its text
  Unit* list;
  int64_t count = 0;
  int64_t cost = 0;  // see Call::parallel
};

// Cut the running tokens, which see the places from `first` (M,) on, into units of at most `most` tokens.
Units units_of(const Places& places, const Cache& cache, const int64_t* first, int64_t most, int64_t queries_per_token,
               Scratch& scratch);

}  // namespace adaptive
