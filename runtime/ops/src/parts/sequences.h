// The running tokens of a pass, those of each slot together in the order of its text.
//
// S slots.
#pragma once

#include "places.h"

namespace adaptive {

struct Sequence {
  int64_t slot;
  int64_t first, count;  // of `Sequences::order`
};

struct Sequences {
  int32_t* order;  // (number,): indices of tokens in the list that was grouped
  Sequence* list;  // one for each slot that has a token, in the order of the slots
  int64_t count = 0;
};

// Group `number` tokens, which rise, by their slot.
Sequences sequences_of(const Places& places, const int32_t* tokens, int64_t number, Scratch& scratch);

}  // namespace adaptive
