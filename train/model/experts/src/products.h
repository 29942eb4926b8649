// Products of bf16 matrices, in tiles whose sums are in registers.
#pragma once

#include "vectors.h"

namespace {

constexpr long MR = 6;       // rows of a tile; with 4 vectors of columns, 24 sums are in registers
constexpr long WIDE = 64;    // columns of a tile

/// rows k, k + 1 of m (K, columns `from` to `from + count`) as words -> to[(k / 2) * WIDE], zeros beyond
void pack_rows(const float *m, long stride, long K, long from, long limit, Pair *to) {
    const __mmask16 mask = first(limit - from);
    for (long k = 0; k < K; k += 2) {
        __m512 a = _mm512_maskz_loadu_ps(mask, m + k * stride + from);
        __m512 b = k + 1 < K ? _mm512_maskz_loadu_ps(mask, m + (k + 1) * stride + from) : _mm512_setzero_ps();
        _mm512_store_si512(to + k / 2 * WIDE, paired(both(a, b)));
    }
}

/// m (rows `row` to `row + 16`, of `rows`; columns `from` to `from + 32`, of `limit`), transposed: of each row two columns as a
/// word -> to[pair of columns * WIDE + row], zeros beyond
void pack_turned(const float *m, long stride, long row, long rows, long from, long limit, long pairs, Pair *to) {
    __m512i r[16];
    for (long i = 0; i < 16; i++) {
        if (row + i >= rows) {
            r[i] = _mm512_setzero_si512();
            continue;
        }
        const float *p = m + (row + i) * stride + from;
        r[i] = both(_mm512_maskz_loadu_ps(first(limit - from), p), _mm512_maskz_loadu_ps(first(limit - from - 16), p + 16));
    }
    transpose16(r);
    for (long i = 0; i < least(16, pairs); i++) _mm512_store_si512(to + i * WIDE, r[i]);
}

/// sums[i][j] = sum over k of a[i][k * step] * b[k * wide + 16 j], in pairs
template <int NZ>
inline __attribute__((always_inline)) void multiply(
    const Pair *const *a, long step, const Pair *b, long wide, long pairs, __m512 (&sums)[MR][NZ]) {
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NZ; j++) sums[i][j] = _mm512_setzero_ps();
    const Pair *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3], *a4 = a[4], *a5 = a[5];
    for (long k = 0, at = 0; k < pairs; k++, at += step, b += wide) {
        __m512bh right[NZ];
#pragma GCC unroll 4
        for (int j = 0; j < NZ; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + 16 * j);
#define ROW(i)                                                            \
    {                                                                     \
        const __m512bh left = (__m512bh)_mm512_set1_epi32((int)a##i[at]); \
        _Pragma("GCC unroll 4") for (int j = 0; j < NZ; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]); \
    }
        ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5)
#undef ROW
    }
}

/// A tile of `vectors` <= 4 vectors of columns, a constant at compile time; calls then(sums) with the sums of that width.
template <class Then>
inline __attribute__((always_inline)) void tile(
    long vectors, const Pair *const *a, long step, const Pair *b, long wide, long pairs, Then then) {
    switch (vectors) {
        case 1: { __m512 s[MR][1]; multiply<1>(a, step, b, wide, pairs, s); then(s); break; }
        case 2: { __m512 s[MR][2]; multiply<2>(a, step, b, wide, pairs, s); then(s); break; }
        case 3: { __m512 s[MR][3]; multiply<3>(a, step, b, wide, pairs, s); then(s); break; }
        default: { __m512 s[MR][4]; multiply<4>(a, step, b, wide, pairs, s); then(s); break; }
    }
}

/// Pointers to MR rows from `row` on; the last row is repeated where there are fewer.
template <class Of>
inline long rows_of(const Pair **a, long row, long rows, Of of) {
    const long here = least(MR, rows - row);
    for (long i = 0; i < MR; i++) a[i] = of(row + (i < here ? i : here - 1));
    return here;
}

/// a (rows, 2 pairs) times b (2 pairs, D), packed -> out (rows, D)
template <class Of>
void product(long rows, long D, long pairs, const Pair *b, Half *out, Of of) {
    for (long c = 0; c < D; c += WIDE)
        for (long row = 0; row < rows; row += MR) {
            const Pair *a[MR];
            const long here = rows_of(a, row, rows, of);
            tile(least(4, (D - c) / 16), a, 1, b + c * pairs, WIDE, pairs, [&](auto &s) __attribute__((always_inline)) {
                constexpr int NZ = sizeof(s[0]) / sizeof(__m512);
                for (long i = 0; i < MR; i++)
                    if (i < here)
                        for (int j = 0; j < NZ; j++) store(out + (row + i) * D + c + 16 * j, s[i][j]);
            });
        }
}

/// left^T (M, 2 pairs) times right (2 pairs, columns), both paired -> out (M, columns) float32, added or assigned
void of_weights_product(long M, long columns, long pairs, const Pair *left, const Pair *right, long wide, float *out,
                        long stride, bool add) {
    for (long c = 0; c < columns; c += WIDE)
        for (long m = 0; m < M; m += MR) {
            const Pair *a[MR];
            const long here = rows_of(a, m, M, [&](long i) { return left + i; });
            tile(least(4, (columns - c + 15) / 16), a, M, right + c, wide, pairs, [&](auto &s) __attribute__((always_inline)) {
                constexpr int NZ = sizeof(s[0]) / sizeof(__m512);
                for (long i = 0; i < MR; i++)
                    if (i < here)
                        for (int j = 0; j < NZ; j++) {
                            float *to = out + (m + i) * stride + c + 16 * j;
                            const __mmask16 mask = first(columns - c - 16 * j);
                            __m512 v = s[i][j];
                            if (add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
                            _mm512_mask_storeu_ps(to, mask, v);
                        }
            });
        }
}

/// Rows of m (N, D) by token, paired: -> to (rows / 2, D); the last of an odd number is paired with zeros
void pair_rows(const Half *m, const int32_t *token, long rows, long D, Pair *to) {
    for (long r = 0; r < rows; r += 2)
        for (long d = 0; d < D; d += 16) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(m + token[r] * D + d));
            const __m256i b = r + 1 < rows ? _mm256_loadu_si256((const __m256i *)(m + token[r + 1] * D + d)) : _mm256_setzero_si256();
            _mm512_storeu_si512(to + r / 2 * D + d, paired(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)));
        }
}

}  // namespace
