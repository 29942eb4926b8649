// Sixteen lanes of float and int32, the same with every instruction set.
//
// A kernel is written once, in these types, and compiled once for each instruction set. Every operation here is exact
// or rounded once, fused operations are fused everywhere (`fma`) or nowhere, and the sum over lanes has one order, so a
// kernel gives the same bits with each of them. (Only the bits of a NaN may differ.)
//
// F16           16 floats: + - * /, `fma(a, b, c)` (a b + c, rounded once), `min`, `max` (b where a is NaN), abs, sqrt
// I16           16 int32: + - (wrapping), `max`, `shift_left<n>`
// load_first    reads n < 16 values, zeros behind them; `store_first` writes n values
// load_half     16 float16 or, `load_bf16`, bfloat16 as floats; `store_half` rounds to nearest even
// to_int        rounds to nearest even; |x| must be below 2^22
// sum           lane i + lane i + 8, then + 4, + 2, + 1
//
// The products of quantised blocks, of which each lane has 4 bytes of weights at a time: `four` repeats 4 activations
// in every lane, and `Int8Products` and `Int4Products<SHARED>` (several rows share the weights) have
//   start, load(weights), add(weights, activations), finish: the exact sum as floats, of int4 in sixteenths of a step
//
// kFloatRows, kFloatLanes, kIntRows, kInt4Rows, kIntLanes are the shape of a tile that the registers hold, in rows and
// F16.
#pragma once
#include <stdint.h>

#ifndef ALWAYS_INLINE
#define ALWAYS_INLINE inline __attribute__((always_inline))
#endif

#if defined(ADAPTIVE_ISA_avx512vnni)
#include "avx512.h"
#elif defined(ADAPTIVE_ISA_avx2)
#include "avx2.h"
#elif defined(ADAPTIVE_ISA_neon) || defined(ADAPTIVE_ISA_neondot)
#include "neon.h"
#elif defined(ADAPTIVE_ISA_plain)
#include "plain.h"
#else
#error "define ADAPTIVE_ISA_<name> to choose an instruction set"
#endif

namespace adaptive {
namespace {

ALWAYS_INLINE F16 zero() { return all(0.0f); }

// Keep the loads before this before those behind it.
ALWAYS_INLINE void in_order() { __asm__ volatile("" ::: "memory"); }

// Bring a line, and the translation of its page, near. The address may be outside of every allocation.
ALWAYS_INLINE void touch(const uint8_t* address) { __builtin_prefetch(address); }

// e^x as scale (1 + rest).
struct Power {
  F16 scale, rest;
};

// Return e^x for x in -88.3..89 or NaN.
ALWAYS_INLINE Power power_of(F16 x) {
  // x = n ln 2 + r, n in -127..128, whose powers are made as the bits of 0 and infinity. Adding 1.5 * 2^23 leaves n,
  // rounded, in the low bits of the sum.
  const F16 magic = all(12582912.0f);
  const F16 shifted = fma(x, all(1.44269504f), magic);
  const F16 n = shifted - magic;
  F16 r = fma(n, all(-0.693145752f), x);
  r = fma(n, all(-1.42860677e-6f), r);
  // e^r = 1 + r + r^2 q(r), q fitted for the least relative error (3e-9) on |r| <= ln 2 / 2
  F16 q = fma(all(0x1.6a2430p-10f), r, all(0x1.1239e4p-7f));
  q = fma(q, r, all(0x1.5558f2p-5f));
  q = fma(q, r, all(0x1.555492p-3f));
  q = fma(q, r, all(0x1.fffffcp-2f));
  const I16 exponent = shift_left<23>(bits(shifted)) + all_int(127 << 23);
  return {floats(exponent), fma(r * r, q, r)};
}

// e^x to 2 units in the last place; infinite from 88.4 on, 0 below -87.7. A NaN passes both limits.
ALWAYS_INLINE F16 exp(F16 x) {
  const Power power = power_of(max(all(-88.3f), min(all(89.0f), x)));
  return (power.rest + all(1.0f)) * power.scale;
}

// tanh(x) to 4 units in the last place, also near 0. From 10 on it is 1.
ALWAYS_INLINE F16 tanh(F16 x) {
  // With m = e^2x - 1 it is m / (m + 2). scale - 1 is exact or does not matter, so m is accurate where it is small.
  const Power power = power_of(max(all(-20.0f), min(all(20.0f), x + x)));
  const F16 m = fma(power.scale, power.rest, power.scale - all(1.0f));
  return m / (m + all(2.0f));
}

}  // namespace
}  // namespace adaptive
