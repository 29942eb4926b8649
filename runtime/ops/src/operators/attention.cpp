// Attention of one layer, from its norms to its residual, with the cache that it writes.
//
// N tokens, M of them run the layer, S slots, D width, H query heads, K key/value heads, W width of a head, P
// contextual positions. Mirrors `export/model/attention/attention.py`, `cope.py` and `window.py`.

#include <algorithm>

#include "../parts/attention_weights.h"
#include "../parts/cache.h"
#include "../parts/chosen_heads.h"
#include "../parts/places.h"
#include "../parts/product.h"
#include "../parts/units.h"

namespace adaptive {

namespace {

class Attention : AttentionPorts {
 public:
  static constexpr const char* kName = "Attention";
  using AttentionPorts::kInputs;
  using AttentionPorts::kOutputs;
  static constexpr CachePorts kCachePorts{
      {past_key, present_key}, {past_value, present_value}, {past_counted, present_counted}};

  explicit Attention(const Attributes& attributes)
      : layer_(attributes.integer("layer", 0, kMostWidth)),
        shape_(attributes),
        policy_(static_cast<Policy>(attributes.integer("policy", 0, 2))),
        window_(attributes.integer("window", 0, kMostWidth)) {}

  void run(Call& call) const {
    Scratch scratch;
    const auto states = call.input<float>(x, {any, any});
    const int64_t rows = states.shape[0], dim = states.shape[1];
    const Places places = places_of(call, {runs, slots, lengths}, rows, layer_, policy_, scratch);
    const AttentionWeights weights(call, shape_, rows, dim, places);
    const Cache cache = read_cache(call, kCachePorts, places.num_slots, shape_.num_kv_heads, shape_.head_dim);
    const int64_t* first = first_places(call, rows, places, cache, scratch);
    const auto factors = call.input<float>(head_weights, {rows, shape_.num_heads});
    if (factors && shape_.qk_norm == QKNorm::full) {
      call.fail_input(head_weights, "is given, but qk_norm is 2: a norm over all heads needs all of them");
    }
    const ChosenHeads heads(factors.data, shape_.num_heads, shape_.head_dim, places.running, places.num_running);

    const auto out = call.output<float>(h, {rows, dim});
    const auto held = call.output<int64_t>(new_lengths, {1, places.num_slots});
    for (int64_t s = 0; s < places.num_slots; ++s) held.data[s] = places.newest[s] + 1;
    cache.count(places);
    if (places.num_running < rows) {
      for (int64_t row = 0, next = 0; row < rows; ++row) {
        if (next < places.num_running && places.running[next] == row) {
          ++next;
        } else {
          std::copy_n(states.data + row * dim, dim, out.data + row * dim);
        }
      }
    }
    if (places.num_writing == 0) return;
    float* queries = scratch.take<float>(places.num_running * shape_.num_heads * shape_.head_dim);
    float* pairs = scratch.take<float>(places.num_writing * 2 * shape_.num_kv_heads * shape_.head_dim);
    project(call, states, weights, places, heads, queries, pairs);
    finish(call, weights, places, heads, queries, pairs);
    write_cells(call, weights, places, cache, pairs);
    if (places.num_running == 0) return;
    const Rows mixed(scratch, places.num_running, shape_.num_heads * shape_.head_dim, is_integer(shape_.precision_o));
    attend(call, weights, places, cache, heads, first, queries, mixed);
    multiply_output(call, weights, states, places, heads, mixed, out.data);
  }

 private:
  // Normalise the rows, and compute queries (M, H W) of the chosen heads and key/value pairs (writing rows, 2 K W).
  void project(Call& call, const Tensor<const float>& states, const AttentionWeights& weights, const Places& places,
               const ChosenHeads& heads, float* queries, float* pairs) const {
    Scratch scratch;
    const int64_t dim = states.shape[1], writing = places.num_writing, running = places.num_running;
    const Rows normed(scratch, writing, dim, is_integer(shape_.precision_q) || is_integer(shape_.precision_kv));
    call.parallel(writing, writing * dim * 16, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        weights.before.apply(states.data + places.writing[j] * dim, normed.values(j));
        normed.quantize(j);
      }
    });
    auto** writers = scratch.take<const Row*>(writing);
    auto** runners = scratch.take<const Row*>(running);
    auto** into_pairs = scratch.take<float*>(writing);
    auto** into_queries = scratch.take<float*>(running);
    for (int64_t j = 0, i = 0; j < writing; ++j) {
      writers[j] = normed.row(j);
      into_pairs[j] = pairs + j * 2 * shape_.num_kv_heads * shape_.head_dim;
      if (i < running && places.running[i] == places.writing[j]) {
        runners[i] = normed.row(j);
        into_queries[i] = queries + i * shape_.num_heads * shape_.head_dim;
        ++i;
      }
    }
    // the groups of q and then those of kv, in one section
    const int64_t of_q = weights.q.groups(), of_kv = weights.kv.groups();
    const int64_t cost = weights.q.bytes() * cost_of_rows(running) + weights.kv.bytes() * cost_of_rows(writing);
    call.parallel(of_q + of_kv, cost, [&](int64_t first, int64_t last) {
      const int64_t end = std::min(last, of_q), begin = std::max(first, of_q);
      if (heads.all()) {
        multiply(weights.q, runners, running, into_queries, first, end);
      } else {
        for (int64_t group = first, next; group < end; group = next) {
          for (next = group + 1; next < end && heads.same_rows(group, next);) ++next;
          multiply_groups(weights.q, heads, runners, running, into_queries, group, next);
        }
      }
      multiply(weights.kv, writers, writing, into_pairs, begin - of_q, last - of_q);
    });
  }

  // Add the biases to queries (M, H W) of the chosen heads and to pairs (writing rows, 2 K W), and normalise all heads of
  // a row together where the model does so.
  void finish(Call& call, const AttentionWeights& weights, const Places& places, const ChosenHeads& heads,
              float* queries, float* pairs) const {
    const bool together = shape_.qk_norm == QKNorm::full;
    if (!together && weights.q_bias == nullptr && weights.kv_bias == nullptr) return;
    const int64_t width = shape_.head_dim, of_q = shape_.num_heads * width, of_k = shape_.num_kv_heads * width;
    call.parallel(places.num_running, places.num_running * of_q * 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        float* own = queries + i * of_q;
        for (int64_t n = 0; weights.q_bias != nullptr && n < shape_.num_heads; ++n) {
          if (heads.chosen(i, n)) kernels().add_scaled(own + n * width, weights.q_bias + n * width, 1.0f, width);
        }
        if (together) kernels().rms_norm(own, weights.q_norm, shape_.eps, own, of_q);
      }
    });
    call.parallel(places.num_writing, places.num_writing * of_k * 32, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        float* own = pairs + j * 2 * of_k;
        if (weights.kv_bias != nullptr) kernels().add_scaled(own, weights.kv_bias, 1.0f, 2 * of_k);
        if (together) kernels().rms_norm(own, weights.k_norm, shape_.eps, own, of_k);
      }
    });
  }

  // Compute groups of q for the rows that chose heads of them.
  static void multiply_groups(const Matrix& q, const ChosenHeads& heads, const Row* const* rows, int64_t count,
                              float* const* into, int64_t first, int64_t last) {
    Scratch scratch;
    auto** own = scratch.take<const Row*>(count);
    auto** own_into = scratch.take<float*>(count);
    int64_t number = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (!heads.needs(i, first)) continue;
      own[number] = rows[i];
      own_into[number++] = into[i];
    }
    multiply(q, own, number, own_into, first, last);
  }

  // Write the cache from pairs (writing rows, 2 K W).
  void write_cells(Call& call, const AttentionWeights& weights, const Places& places, const Cache& cache,
                   float* pairs) const {
    const int64_t width = shape_.num_kv_heads * shape_.head_dim;
    call.parallel(places.num_writing, places.num_writing * width * 32, [&](int64_t first, int64_t last) {
      for (int64_t j = first; j < last; ++j) {
        const int64_t row = places.writing[j], place = places.place[row], slot = places.slot(row);
        if (place + cache.capacity <= places.newest[slot]) continue;  // a later token of this pass takes its cell
        float* pair = pairs + j * 2 * width;
        for (int64_t k = 0; k < shape_.num_kv_heads; ++k, pair += shape_.head_dim) {
          weights.turn(shape_, weights.k_norm, row, pair);
          kernels().write_cell(cache.head(slot, k), place % cache.capacity, pair, pair + width);
        }
      }
    });
  }

  static constexpr int64_t kUnitQueries = 64;  // queries of a unit at most

  // Mix the values for queries (M, H W), which are turned here, into rows (M, H W) of input for o.
  void attend(Call& call, const AttentionWeights& weights, const Places& places, const Cache& cache,
              const ChosenHeads& heads, const int64_t* first, float* queries, const Rows& mixed) const {
    Scratch scratch;
    const int64_t group = shape_.num_heads / shape_.num_kv_heads, most = std::max<int64_t>(kUnitQueries / group, 1);
    const Units units = units_of(places, cache, first, most, group, scratch);
    const float* embedding = shape_.num_positions > 0 ? weights.position_embedding.data : nullptr;
    call.parallel(units.count, units.cost, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        Scratch own;
        const Unit& unit = units.list[u];
        const CacheHead head = cache.head(unit.slot, unit.kv_head);
        auto* list = own.take<Query>(unit.count * group);
        int64_t count = 0, oldest = first[units.order[unit.first]];
        for (int64_t j = unit.first; j < unit.first + unit.count; ++j) {
          const int64_t i = units.order[j], row = places.running[i];
          for (int64_t n = unit.kv_head * group; n < (unit.kv_head + 1) * group; ++n) {
            float* query = queries + (i * shape_.num_heads + n) * shape_.head_dim;
            float* out = mixed.values(i) + n * shape_.head_dim;
            if (!heads.chosen(i, n)) {
              std::fill_n(out, shape_.head_dim, 0.0f);
              continue;
            }
            weights.turn(shape_, weights.q_norm, row, query);
            list[count++] = {query, out, heads.weight(i, n), first[i], places.place[row]};
            oldest = std::min(oldest, first[i]);
          }
        }
        if (count == 0) continue;
        const int64_t span = list[count - 1].last - oldest + 1;
        kernels().attend({&head, list, count, cache.counted(unit.slot), embedding, shape_.num_positions, shape_.softcap,
                          own.take<float>(attend_scratch(shape_.head_dim, span, shape_.num_positions))});
      }
    });
  }

  // out = x + (o mixed + bias) for the running rows, or x + norm(o mixed + bias).
  void multiply_output(Call& call, const AttentionWeights& weights, const Tensor<const float>& states,
                       const Places& places, const ChosenHeads& heads, const Rows& mixed, float* out) const {
    Scratch scratch;
    const Matrix& o = weights.o;
    const int64_t dim = states.shape[1], count = places.num_running;
    call.parallel(count, count * shape_.num_heads * shape_.head_dim * 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) mixed.quantize(i);
    });
    const ChosenHeads::Sets sets = heads.sets(scratch);
    auto** rows = scratch.take<const Row*>(count);
    auto** into = scratch.take<float*>(count);
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = mixed.row(sets.order[i]);
      into[i] = out + places.running[sets.order[i]] * dim;
    }
    call.parallel(o.groups(), o.bytes() * cost_of_rows(count), [&](int64_t first, int64_t last) {
      for (int64_t s = 0; s < sets.count; ++s) {
        const ChosenHeads::Set& set = sets.sets[s];
        multiply(o, rows + set.first, set.count, into + set.first, first, last,
                 set.blocks.index ? &set.blocks : nullptr);
      }
      const int64_t begin = first * kGroup, end = std::min(last * kGroup, dim);
      for (int64_t i = 0; i < count; ++i) {
        if (weights.o_bias != nullptr) {
          for (int64_t j = begin; j < end; ++j) into[i][j] += weights.o_bias[j];
        }
        if (!weights.after) add_residual(states.data + (into[i] - out), into[i], begin, end);
      }
    });
    if (!weights.after) return;
    call.parallel(count, count * dim * 16, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        weights.after.apply(into[i], into[i]);
        add_residual(states.data + (into[i] - out), into[i], 0, dim);
      }
    });
  }

  static void add_residual(const float* residual, float* row, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) row[j] += residual[j];
  }

  // Return the first place that each running row sees (M,), and check that the cache holds all that is seen and
  // written.
  int64_t* first_places(const Call& call, int64_t rows, const Places& places, const Cache& cache,
                        Scratch& scratch) const {
    const auto sizes = call.input<int64_t>(windows, {rows});
    if (sizes && window_ == 0) call.fail_input(windows, "is given, but window is 0: the cache is no ring");
    for (int64_t j = 0; window_ == 0 && j < places.num_writing; ++j) {
      const int64_t slot = places.slot(places.writing[j]);
      cache.check_holds(call, slot, places.newest[slot] + 1, past_key);
    }
    auto* first = scratch.take<int64_t>(places.num_running);
    for (int64_t i = 0; i < places.num_running; ++i) {
      const int64_t row = places.running[i], place = places.place[row];
      const int64_t window = window_ == 0 ? place + 1 : sizes ? sizes.data[row] : window_;
      if (window < 1) {
        call.fail_input(windows,
                        "is " + std::to_string(window) + " for row " + std::to_string(row) + ", expected at least 1");
      }
      first[i] = window > place ? 0 : place - window + 1;
      // a later token of this pass must not have taken the cell of the first
      const int64_t slot = places.slot(row);
      cache.check_holds(call, slot, places.newest[slot] - first[i] + 1, past_key);
    }
    return first;
  }

  int64_t layer_;
  AttentionShape shape_;
  Policy policy_;
  int64_t window_;
};

const Registration<Attention> registration;

}  // namespace

}  // namespace adaptive
