// The inputs and outputs of the operator Attention.
//
// B batch, T time, N = B*T tokens, S slots, D width, H query heads, K key/value heads, W width of a head, C capacity of
// the cache, R elements of a cell (attend_task.h), P contextual positions, L layers.
#pragma once

#include "../binding/operator.h"

namespace adaptive {

struct AttentionPorts {
  // clang-format off
  enum Input {
    x, runs, positions, slots, lengths, windows, head_weights, norm, norm_bias, post_norm, post_norm_bias, q, kv, o,
    q_bias, kv_bias, o_bias, q_norm, k_norm, cos, sin, position_embedding, past_key, past_value, past_counted
  };
  // clang-format on
  static constexpr Port kInputs[] = {
      {"x", Element::float32},                             // (N, D)
      {"runs", Element::boolean, optional},                // (N, 1); absent: every token runs
      {"positions", Element::int64},                       // (B, T), places in the text, which RoPE turns by
      {"slots", Element::int64},                           // (B,), the slot whose cells a row of tokens sees and writes
      {"lengths", Element::int64},                         // (L, S), tokens that each layer's cache holds
      {"windows", Element::int64, optional},               // (N,), tokens that each looks back at, itself included
      {"head_weights", Element::float32, optional},        // (N, H), factors of the heads' outputs; 0: not chosen
      {"norm", Element::float32, optional},                // (D,), of x; absent: x is read without a norm
      {"norm_bias", Element::float32, optional},           // (D,), of LayerNorm
      {"post_norm", Element::float32, optional},           // (D,), of the output, before x is added; absent: none
      {"post_norm_bias", Element::float32, optional},      // (D,)
      {"q", Element::uint8},                               // packed (H W, D)
      {"kv", Element::uint8},                              // packed (2 K W, D), keys first
      {"o", Element::uint8},                               // packed (D, H W)
      {"q_bias", Element::float32, optional},              // (H W,)
      {"kv_bias", Element::float32, optional},             // (2 K W,)
      {"o_bias", Element::float32, optional},              // (D,)
      {"q_norm", Element::float32, optional},              // (W,), or (H W,) for all heads together
      {"k_norm", Element::float32, optional},              // (W,), or (K W,)
      {"cos", Element::float32, optional},                 // (context, rotated / 2), under RoPE
      {"sin", Element::float32, optional},                 // (context, rotated / 2)
      {"position_embedding", Element::float32, optional},  // (P / 16, W, 16), under CoPE: blocks of keys
      {"past_key", Element::any},                          // (S, K, C, R): float32, float16 or int8
      {"past_value", Element::any},                        // (S, K, C, R)
      {"past_counted", Element::float32, optional},        // (S, 1, C, 1): 1 where the token of a cell ran the layer
  };
  enum Output { h, new_lengths, present_key, present_value, present_counted };
  // The cache is written in place where past and present are one buffer; else it is copied first.
  static constexpr Port kOutputs[] = {
      {"h", Element::float32},  // (N, D): x + attention, or x where the layer is skipped
      {"new_lengths", Element::int64},  // (1, S), lengths of this layer after the pass
      {"present_key", Element::any, Presence::required, past_key},
      {"present_value", Element::any, Presence::required, past_value},
      {"present_counted", Element::float32, optional},
  };
};

}  // namespace adaptive
