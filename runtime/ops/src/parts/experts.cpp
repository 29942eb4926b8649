#include "experts.h"

namespace adaptive {

namespace {

constexpr int64_t kMostPairs = 256;
constexpr int64_t kLeastPairs = 16;
constexpr int64_t kHiddenBytes = 8 << 20;  // of the hidden values of the pairs that are computed together
constexpr int64_t kCostOfSilu = 16;        // bytes that could be read while one hidden value is computed

}  // namespace

void Experts::add(const Matrix& gate_up, const Matrix& down, Biases biases) {
  stacks_[num_stacks_++] = {gate_up, down, biases};
}

bool Experts::any_integer() const {
  return is_integer(stacks_[0].gate_up.precision) ||
         (num_stacks_ > 1 && is_integer(stacks_[1].gate_up.precision));
}

int64_t Experts::most_pairs() const {
  int64_t hidden = 0;
  for (int64_t s = 0; s < num_stacks_; ++s) hidden = std::max(hidden, stacks_[s].down.inputs);
  return std::clamp(kHiddenBytes / (3 * hidden * static_cast<int64_t>(sizeof(float))), kLeastPairs, kMostPairs);
}

Experts::Run Experts::expert(int64_t number, int64_t first, int64_t last) const {
  const bool shared = number == num_routed_;
  const Stack& stack = stacks_[shared ? 1 : 0];
  const int64_t within = shared ? 0 : number;
  Biases biases = stack.biases;
  if (biases.gate_up != nullptr) biases.gate_up += within * stack.gate_up.outputs;
  if (biases.down != nullptr) biases.down += within * stack.down.outputs;
  return {nth(stack.gate_up, within), nth(stack.down, within), first, last, 0, nullptr, biases};
}

void Experts::run(const Rows& x, const int64_t* tokens, const bool* chosen, const float* weights, int64_t width,
                  const float* shared_weights, float* out) const {
  Scratch scratch;
  // ends[e]: first the number of pairs of expert e, then the place where they start, then the one where they end
  auto* ends = scratch.zeros<int64_t>(num_experts() + 1);
  for (int64_t i = 0; i < x.count(); ++i) {
    const bool* own = chosen + tokens[i] * columns_;
    for (int64_t e = 0; e < num_routed_; ++e) ends[e + 1] += own[e];
  }
  if (num_stacks_ > 1) ends[num_experts()] = x.count();
  for (int64_t e = 0; e < num_experts(); ++e) ends[e + 1] += ends[e];
  const int64_t num_pairs = ends[num_experts()];
  auto* pairs = scratch.take<Pair>(num_pairs);
  for (int64_t i = 0; i < x.count(); ++i) {
    const bool* own = chosen + tokens[i] * columns_;
    for (int64_t e = 0; e < num_routed_; ++e) {
      if (own[e]) pairs[ends[e]++] = {i, weights[i * width + e]};
    }
    if (num_stacks_ > 1) pairs[ends[num_routed_]++] = {i, shared_weights == nullptr ? 1.0f : shared_weights[i]};
  }

  const int64_t most = most_pairs();
  auto* runs = scratch.take<Run>(std::min(most, num_pairs));
  int64_t e = 0;
  for (int64_t start = 0; start < num_pairs; start += most) {
    const int64_t end = std::min(start + most, num_pairs);
    int64_t num_runs = 0;
    for (int64_t first = start; first < end;) {
      while (ends[e] <= first) ++e;
      const int64_t last = std::min(ends[e], end);
      runs[num_runs++] = expert(e, first - start, last - start);
      first = last;
    }
    compute(x, tokens, pairs + start, runs, num_runs, out);
  }
}

void Experts::compute(const Rows& x, const int64_t* tokens, const Pair* pairs, Run* runs, int64_t num_runs,
                      float* out) const {
  Scratch scratch;
  const int64_t num_pairs = runs[num_runs - 1].last;
  auto** rows = scratch.take<const Row*>(num_pairs);
  auto** hidden = scratch.take<float*>(num_pairs);  // (2F,)
  auto** inner = scratch.take<const Row*>(num_pairs);
  auto** sums = scratch.take<float*>(num_pairs);  // (D,)
  int64_t groups = 0, up_cost = 0, down_cost = 0, silu_cost = 0;
  for (int64_t r = 0; r < num_runs; ++r) {
    Run& run = runs[r];
    const int64_t width = run.down.inputs;
    run.inner = new (scratch.take<Rows>(1)) Rows(scratch, run.size(), width, is_integer(run.down.precision));
    for (int64_t p = run.first; p < run.last; ++p) {
      rows[p] = x.row(pairs[p].row);
      hidden[p] = scratch.take<float>(form_.hidden_outputs(width));
      inner[p] = run.inner->row(p - run.first);
      sums[p] = scratch.take<float>(dim_);
    }
    run.groups_before = groups;
    groups += run.gate_up.groups();
    up_cost += run.gate_up.bytes() * cost_of_rows(run.size());
    down_cost += run.down.bytes() * cost_of_rows(run.size());
    silu_cost += run.size() * width * kCostOfSilu;
  }

  call_.parallel(groups, up_cost, [&](int64_t first, int64_t last) {
    for (int64_t r = 0; r < num_runs; ++r) {
      const Run& run = runs[r];
      const int64_t from = std::max(first - run.groups_before, int64_t{0});
      const int64_t to = std::min(last - run.groups_before, run.gate_up.groups());
      multiply(run.gate_up, rows + run.first, run.size(), hidden + run.first, from, to);
    }
  });
  call_.parallel(num_pairs, silu_cost, [&](int64_t first, int64_t last) {
    int64_t r = 0;
    for (int64_t p = first; p < last; ++p) {
      while (runs[r].last <= p) ++r;
      const Run& run = runs[r];
      const int64_t width = run.down.inputs, own = p - run.first;
      if (run.biases.gate_up != nullptr) {
        kernels().add_scaled(hidden[p], run.biases.gate_up, 1.0f, form_.hidden_outputs(width));
      }
      const float* up = form_.gated ? hidden[p] + width : nullptr;
      kernels().activate(form_.activation, hidden[p], up, pairs[p].weight, run.inner->values(own), width);
      run.inner->quantize(own);
    }
  });
  call_.parallel(runs[0].down.groups(), down_cost, [&](int64_t first, int64_t last) {
    const int64_t start = first * kGroup, width = std::min(last * kGroup, dim_) - start;
    for (int64_t r = 0; r < num_runs; ++r) {
      const Run& run = runs[r];
      multiply(run.down, inner + run.first, run.size(), sums + run.first, first, last);
      for (int64_t p = run.first; p < run.last; ++p) {
        float* y = out + tokens[pairs[p].row] * dim_ + start;
        if (run.biases.down != nullptr) {
          kernels().add_scaled(sums[p] + start, run.biases.down + start, pairs[p].weight, width);
        }
        kernels().add_scaled(y, sums[p] + start, 1.0f, width);
      }
    }
  });
}

}  // namespace adaptive
