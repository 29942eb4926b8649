// The tasks of the attention kernel (attend.h), as the operators state them. Plain data, the same for every instruction
// set.
//
// A cache holds the keys and values of C cells per sequence and key/value head. The token at place p (the number of
// tokens that the layer held before it) is in cell p mod C; where the cache is no ring, places are less than C. W is
// the width of a head. R is the number of elements of a cell: W, and in int8 W + 4 for a float32 scale.
//   Values: one row of R elements per cell, in int8 W codes and then the scale.
//   Keys: blocks of 16 cells. Block b holds r = min(16, C - 16 b) of them and starts at element 16 R b; component w of
//   its cell i is element w r + i, in int8 followed by the r scales. So one register holds a component of 16 keys.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace adaptive {

enum class CacheType : int64_t { fp32 = 0, fp16 = 1, int8 = 2 };

constexpr int64_t kKeyBlock = 16;  // cells of a block of keys

static inline int64_t cell_bytes(CacheType type, int64_t head_dim) {
  return type == CacheType::fp32 ? 4 * head_dim : type == CacheType::fp16 ? 2 * head_dim : head_dim + 4;
}

struct CacheHead {  // one sequence and key/value head
  CacheType type;
  int64_t head_dim, capacity;
  uint8_t* keys;    // C cells
  uint8_t* values;  // C cells
};

struct Query {          // one row and query head
  const float* values;  // (W), normed and rotated
  float* out;           // (W)
  float weight;         // factor of the output
  int64_t first, last;  // the places that it sees: 0 <= first <= last, last - first < C, all of them written
};

struct AttendTask {
  const CacheHead* cache;
  const Query* queries;  // in order of `last`
  int64_t num_queries;
  const float* counted;             // (C): > 0 where a cell counts for contextual positions; nullptr: all
  const float* position_embedding;  // contextual positions (P, W) as blocks of keys, filled with zeros; nullptr: none
  int64_t num_positions;
  float softcap;   // limit c of the scores, which become c tanh(score / c) before positions are added; 0: none
  float* scratch;  // attend_scratch(...) floats
};

constexpr int64_t kMostQueries = 8;  // queries that are scored together

static inline int64_t padded_positions(int64_t number) { return (number + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }

// Return the number of floats of scratch memory that a task needs whose queries see places at most `span` apart.
static inline int64_t attend_scratch(int64_t head_dim, int64_t span, int64_t num_positions) {
  int64_t row = span + 3 * kKeyBlock;  // a block before the first place, one after the last, and rounding
  return kMostQueries * (row + head_dim + padded_positions(num_positions)) + kKeyBlock * head_dim + 2 * kKeyBlock;
}

}  // namespace adaptive
