// The passes over the table of tokens, written once for vectors of LANES floats. No result depends on LANES.
//
// sample.cpp includes this file once for each instruction set, in a namespace of its own, so there is no include guard;
// PASS names the instruction set in front of each function.

constexpr int64_t N = LANES;
typedef float Floats __attribute__((vector_size(4 * N), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * N), aligned(4), may_alias));

PASS Floats& at(float* x, int64_t i) { return *reinterpret_cast<Floats*>(x + i); }
PASS Ints bits(Floats x) { return (Ints)x; }
PASS Floats floats(Ints x) { return (Floats)x; }
PASS Floats all(float x) { return x - Floats{}; }

// Set the scores of tokens that are not allowed to -infinity.
PASS void mask_scores(Settings& s, int64_t n) {
  Ints lane_bits;
  for (int l = 0; l < N; ++l) lane_bits[l] = 1 << l;
  for (int64_t begin = 0; begin < s.tokens; begin += 32) {
    const uint32_t word = s.allowed[begin / 32];
    if (word == 0xFFFFFFFFu) continue;
    const int64_t count = n - begin < 32 ? n - begin : 32;
    for (int64_t j = 0; j < count; j += N) {
      Floats& x = at(s.scores, begin + j);
      x = ((Ints{} + static_cast<int32_t>(word >> j)) & lane_bits) != 0 ? x : all(-kInfinity);
    }
  }
}

// Return the largest score, NaN if there is one, and the least that is not -infinity.
PASS Range find_range(float* scores, int64_t n) {
  Floats best = all(-kInfinity), least = all(kInfinity);
  Ints wrong = {};
  for (int64_t i = 0; i < n; i += N) {
    const Floats x = at(scores, i);
    best = x > best ? x : best;
    least = (x < least) & (x > all(-kInfinity)) ? x : least;
    wrong |= x != x;
  }
  Range result{-kInfinity, kInfinity};
  for (int l = 0; l < N; ++l) {
    if (wrong[l]) return {__builtin_nanf(""), 0.0f};
    result.best = best[l] > result.best ? best[l] : result.best;
    result.least = least[l] < result.least ? least[l] : result.least;
  }
  return result;
}

// Count the scores that reach each of three bounds.
PASS void count(float* scores, int64_t n, const float* bounds, int64_t* counts) {
  const Floats first = all(bounds[0]), second = all(bounds[1]), third = all(bounds[2]);
  Ints reached[3] = {};
  for (int64_t i = 0; i < n; i += N) {
    const Floats x = at(scores, i);
    reached[0] -= x >= first;
    reached[1] -= x >= second;
    reached[2] -= x >= third;
  }
  for (int j = 0; j < 3; ++j) {
    counts[j] = 0;
    for (int l = 0; l < N; ++l) counts[j] += reached[j][l];
  }
}

// Return whether any number is not 0.
PASS bool any(Ints x) {
  uint64_t parts[N / 2];
  std::memcpy(parts, &x, sizeof parts);
  uint64_t all = 0;
  for (int i = 0; i < N / 2; ++i) all |= parts[i];
  return all != 0;
}

// Copy the scores from `low` to below `top` to `into`, which has room for n; return their number.
PASS int64_t gather(float* scores, int64_t n, float low, float top, float* into) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    Ints some = {};
    for (int64_t j = 0; j < 16; j += N) some |= (at(scores, i + j) >= low) & (at(scores, i + j) < top);
    if (!any(some)) continue;
    for (int64_t j = i; j < i + 16; ++j) {
      into[count] = scores[j];
      count += scores[j] >= low && scores[j] < top;
    }
  }
  return count;
}

// weights = 2 ** ((scores - best) * rate); 0 for scores below `low`, or if it would be below 2 ** -126.
PASS void exponential(float* scores, float* weights, int64_t n, float best, float rate, float low) {
  const Floats round = all(12582912.0f);  // 1.5 * 2 ** 23: adding it rounds to the nearest whole number
  const Floats least = all(-150.0f);
  for (int64_t i = 0; i < n; i += N) {
    const Floats x = at(scores, i);
    Floats z = (x - best) * rate;
    z = z > least ? z : least;
    const Floats whole = (z + round) - round;
    const Floats r = z - whole;
    Floats p = r * 0.00015370704932138324f;  // least relative error, 2e-9, of 2 ** r for -0.5 <= r <= 0.5
    p = (p + 0.0013399848248809576f) * r;
    p = (p + 0.009618373587727547f) * r;
    p = (p + 0.05550329014658928f) * r;
    p = (p + 0.24022647738456726f) * r;
    p = (p + 0.6931471824645996f) * r;
    p = p + 1.0f;
    Ints exponent = (bits(z + round) - bits(round)) + 127;
    exponent = exponent > 0 ? exponent : Ints{};
    at(weights, i) = x >= low ? p * floats(exponent << 23) : Floats{};
  }
}

// Set weights below `least` to 0.
PASS void keep_weights(float* weights, int64_t n, float least) {
  for (int64_t i = 0; i < n; i += N) at(weights, i) = at(weights, i) >= least ? at(weights, i) : Floats{};
}

// Set the weights of tokens to 0 that do not rank before `token`: by falling score, then by rising id.
PASS void keep_before(float* scores, float* weights, int64_t n, int64_t token) {
  const float score = scores[token];
  int64_t i = 0;
  for (; i + N <= token; i += N) at(weights, i) = at(scores, i) >= score ? at(weights, i) : Floats{};
  for (; i % N != 0 || i < token; ++i) {
    const bool before = i < token ? scores[i] >= score : scores[i] > score;
    weights[i] = before ? weights[i] : 0.0f;
  }
  for (; i < n; i += N) at(weights, i) = at(scores, i) > score ? at(weights, i) : Floats{};
}

// Add up the columns, row after row; return the sum of all.
PASS double sum_columns(float* weights, float* sums, int64_t n, int64_t columns) {
  std::memset(sums, 0, static_cast<size_t>(columns) * sizeof(float));
  for (int64_t i = 0; i < n; i += columns) {
    for (int64_t c = 0; c < columns; c += N) at(sums, c) += at(weights, i + c);
  }
  double whole = 0.0;
  for (int64_t c = 0; c < columns; ++c) whole += sums[c];
  return whole;
}

// Find the k-th largest score. `low` is reached by k scores or more, `top` by fewer.
//
// Each pass counts how many scores reach three bounds between these. The bounds divide the range evenly; once few scores
// are left, or after some passes, they divide the floats in the range evenly, of which there is an end.
PASS Place kth_largest(float* scores, int64_t n, int64_t k, Range range, float* space) {
  float low = -kInfinity, top = unordered(ordered(range.best) + 1);
  int64_t reach = n, above = 0, outside = 0;
  const float usual = range.least > range.best - kUsualRange ? range.least : range.best - kUsualRange;
  float bounds[3] = {usual, usual + (range.best - usual) * 0.5f, usual + (range.best - usual) * 0.75f};
  for (int pass = 1;; ++pass) {
    int64_t counts[3];
    count(scores, n, bounds, counts);
    for (int j = 0; j < 3; ++j) {
      if (counts[j] < k) {
        top = bounds[j];
        above = counts[j];
        break;
      }
      low = bounds[j];
      reach = counts[j];
    }
    const int64_t first = ordered(low), end = ordered(top);
    if (end - first <= 1) return {low, outside + reach};
    if (scores != space && reach - above <= kFew) {
      n = gather(scores, n, low, top, space);
      while (n % 16 != 0) space[n++] = -kInfinity;
      scores = space;
      k -= above;
      outside = above;
      reach -= above;
      above = 0;
    }
    const bool evenly = pass < kEvenPasses && scores != space && low > -kInfinity;
    for (int j = 0; j < 3; ++j) {
      const int64_t part = (end - first) * (j + 1) / 4;
      bounds[j] = unordered(first + (part > 0 ? part : 1));
      if (evenly) {
        const float bound = low + (top - low) * (0.25f * static_cast<float>(j + 1));
        if (bound > low && bound < top) bounds[j] = bound;
      }
    }
  }
}

// Set the weights of the last `surplus` tokens to 0 that have this score.
PASS void drop_last(Settings& s, int64_t n, float score, int64_t surplus) {
  for (int64_t i = n - 1; surplus > 0; --i) {
    if (s.scores[i] == score) s.weights[i] = 0.0f, --surplus;
  }
}

PASS int64_t sample(Settings& s, const float* logits) {
  const int64_t n = (s.tokens + s.columns - 1) / s.columns * s.columns;
  change_logits(s, logits, n);
  if (s.allowed != nullptr) mask_scores(s, n);
  const Range range = find_range(s.scores, n);
  if (!(range.best > -kInfinity && range.best < kInfinity)) return -1;
  Place last{-kInfinity, s.top_k};  // of those that `top_k` keeps
  if (s.top_k < s.tokens) last = kth_largest(s.scores, n, s.top_k, range, s.weights);
  exponential(s.scores, s.weights, n, range.best, s.rate, last.score);
  drop_last(s, n, last.score, last.reach - s.top_k);
  const double mass = s.top_p * sum_columns(s.weights, s.sums, n, s.columns);
  if (s.top_p < 1.0 && mass <= 1.0) return best_token(s.scores, range.best);  // its weight of 1 is enough
  if (s.min_p > 0.0f) {
    keep_weights(s.weights, n, s.min_p);
    sum_columns(s.weights, s.sums, n, s.columns);
  }
  int64_t token = draw(s, n);
  // The nucleus holds a token if those that rank before it have less than `mass`; else the next draw is among those.
  while (s.top_p < 1.0) {
    keep_before(s.scores, s.weights, n, token);
    if (sum_columns(s.weights, s.sums, n, s.columns) < mass) break;
    token = draw(s, n);
  }
  return token;
}
