// Which query heads the running rows of a pass have chosen, and what follows for the products q and o.
//
// M running rows, H heads, W width of a head.
#pragma once

#include <algorithm>

#include "product.h"

namespace adaptive {

class ChosenHeads {
 public:
  // `weights` (N, H) are 0 where a head is not chosen; null: all heads of all rows, with weight 1.
  ChosenHeads(const float* weights, int64_t heads, int64_t head_dim, const int32_t* running, int64_t num_running)
      : weights_(weights), heads_(heads), head_dim_(head_dim), running_(running), count_(num_running) {}

  bool all() const { return weights_ == nullptr; }
  float weight(int64_t i, int64_t head) const { return all() ? 1.0f : weights_[running_[i] * heads_ + head]; }
  bool chosen(int64_t i, int64_t head) const { return all() || weight(i, head) != 0; }

  // Return whether running row i chose a head that has outputs of q in a group of 64.
  bool needs(int64_t i, int64_t group) const {
    const int64_t last = std::min((group * kGroup + kGroup - 1) / head_dim_, heads_ - 1);
    for (int64_t head = group * kGroup / head_dim_; head <= last; ++head) {
      if (chosen(i, head)) return true;
    }
    return false;
  }

  // Return whether the same rows need two groups.
  bool same_rows(int64_t a, int64_t b) const {
    for (int64_t i = 0; i < count_; ++i) {
      if (needs(i, a) != needs(i, b)) return false;
    }
    return true;
  }

  // Running rows [first, first + count) of `order`, whose heads are in these blocks of 32 inputs of o; null: all
  // blocks.
  struct Set {
    int64_t first, count;
    Blocks blocks;
  };
  struct Sets {
    int32_t* order;  // (M,)
    Set* sets;
    int64_t count;
  };

  // Put rows with the same heads together where that saves work: a set reads its blocks of o once for all of its rows.
  // An input that is 0 adds nothing, so a row's result has the same bits with more blocks than its own.
  Sets sets(Scratch& scratch) const {
    Sets result{scratch.take<int32_t>(count_), scratch.take<Set>(count_), 0};
    for (int64_t i = 0; i < count_; ++i) result.order[i] = static_cast<int32_t>(i);
    if (all()) {
      result.sets[result.count++] = {0, count_, {nullptr, 0}};
      return result;
    }
    std::sort(result.order, result.order + count_, [this](int32_t a, int32_t b) { return compare(a, b) < 0; });
    int64_t differing = 1;
    for (int64_t i = 1; i < count_; ++i) differing += compare(result.order[i - 1], result.order[i]) != 0;
    const bool together = differing * kWorthwhile > count_;
    for (int64_t i = 0; i < count_; ++i) {
      const bool begins = i == 0 || (!together && compare(result.order[i - 1], result.order[i]) != 0);
      if (begins) result.sets[result.count++] = {i, 0, {nullptr, 0}};
      ++result.sets[result.count - 1].count;
    }
    for (int64_t s = 0; s < result.count; ++s) {
      Set& set = result.sets[s];
      set.blocks = blocks(result.order + set.first, set.count, scratch);
    }
    return result;
  }

 private:
  static constexpr int64_t kWorthwhile = 4;  // rows of a set, on average, from which it pays to read o once more

  int compare(int32_t a, int32_t b) const {
    for (int64_t head = 0; head < heads_; ++head) {
      const int difference = static_cast<int>(chosen(a, head)) - static_cast<int>(chosen(b, head));
      if (difference != 0) return difference;
    }
    return 0;
  }

  Blocks blocks(const int32_t* rows, int64_t count, Scratch& scratch) const {
    const int64_t most = (heads_ * head_dim_ + kBlock - 1) / kBlock;
    bool* active = scratch.zeros<bool>(most);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t head = 0; head < heads_; ++head) {
        if (!chosen(rows[i], head)) continue;
        const int64_t last = ((head + 1) * head_dim_ - 1) / kBlock;
        for (int64_t block = head * head_dim_ / kBlock; block <= last; ++block) active[block] = true;
      }
    }
    auto* index = scratch.take<int32_t>(most);
    int64_t number = 0;
    for (int64_t block = 0; block < most; ++block) {
      if (active[block]) index[number++] = static_cast<int32_t>(block);
    }
    return {index, number};
  }

  const float* weights_;
  int64_t heads_, head_dim_;
  const int32_t* running_;
  int64_t count_;
};

}  // namespace adaptive
