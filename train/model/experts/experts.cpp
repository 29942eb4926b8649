// SwiGLU experts for the chosen (token, expert) pairs, forward and backward: bf16 products by AVX512-BF16. The operations
// around them (gather, silu, weighting, casts) are done while the numbers are in registers.
//
// N tokens, D width (a multiple of 16), E experts, F hidden width, P = F rounded up to 16, R rows = chosen pairs.
// A row of `hidden` is gate (P) | up (P). "Paired" means that the numbers of two rows k, k + 1 are side by side in one word
// of 32 bits, which vdpbf16ps multiplies and adds in one instruction.

#include <immintrin.h>
#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

using Half = uint16_t;  // bf16
using Pair = uint32_t;  // two of them

constexpr long MR = 6;       // rows of a tile; with 4 vectors of columns, 24 sums are in registers
constexpr long WIDE = 64;    // columns of a tile
constexpr long BLOCK = 240;  // rows of an expert at a time, so that their results stay in L2

inline long up_to(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }
inline long least(long a, long b) { return a < b ? a : b; }
inline __mmask16 first(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

template <class T>
struct Memory {
    T *at;
    explicit Memory(long n) : at((T *)std::aligned_alloc(64, up_to((n > 0 ? n : 1) * (long)sizeof(T), 64))) {
        if (!at) std::abort();
    }
    ~Memory() { std::free(at); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
};

inline __m512 widen(const Half *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
inline __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline void store(Half *p, __m512 v) { _mm256_storeu_si256((__m256i *)p, narrow(v)); }
/// v rounded to bf16.
inline __m512 rounded(__m512 v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(v)), 16)); }
/// a in the lower halves of 16 words, b in the upper ones.
inline __m512i paired(__m512i ab) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), ab);
}
inline __m512i both(__m512 a, __m512 b) { return (__m512i)_mm512_cvtne2ps_pbh(b, a); }

/// exp(x), to 2 units in the last place; 0 and infinity outside the range of float32.
inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-104.f)), _mm512_set1_ps(104.f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.f)));
    return _mm512_scalef_ps(p, n);
}
inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

/// The rows of each expert in order of token, and the rows of each token.
struct Plan {
    long N, E, R;
    Memory<int32_t> token, row, start, begin;
    Plan(const uint8_t *selected, long N, long E, long R)
        : N(N), E(E), R(R), token(R), row(R), start(E + 1), begin(N + 1) {
        Memory<int32_t> next(E);
        std::memset(next.at, 0, E * sizeof(int32_t));
        for (long n = 0; n < N; n++)
            for (long e = 0; e < E; e++) next.at[e] += selected[n * E + e];
        start.at[0] = 0;
        for (long e = 0; e < E; e++) {
            start.at[e + 1] = start.at[e] + next.at[e];
            next.at[e] = start.at[e];
        }
        long pair = 0;
        for (long n = 0; n < N; n++) {
            begin.at[n] = pair;
            for (long e = 0; e < E; e++)
                if (selected[n * E + e]) {
                    token.at[next.at[e]] = n;
                    row.at[pair++] = next.at[e]++;
                }
        }
        begin.at[N] = pair;
    }
};

/// rows k, k + 1 of m (K, columns `from` to `from + count`) as words -> to[(k / 2) * WIDE], zeros beyond
void pack_rows(const float *m, long stride, long K, long from, long limit, Pair *to) {
    const __mmask16 mask = first(limit - from);
    for (long k = 0; k < K; k += 2) {
        __m512 a = _mm512_maskz_loadu_ps(mask, m + k * stride + from);
        __m512 b = k + 1 < K ? _mm512_maskz_loadu_ps(mask, m + (k + 1) * stride + from) : _mm512_setzero_ps();
        _mm512_store_si512(to + k / 2 * WIDE, paired(both(a, b)));
    }
}

inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
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

template <int N>
constexpr int width(__m512 (&)[MR][N]) { return N; }

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

/// Sum of each token's rows, weighted or not: rows (R, D) -> out (N, D)
void sum_by_token(const Plan &plan, long D, const Half *rows, const float *weights, const uint8_t *selected, Half *out,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < plan.N; n++)
        for (long d = 0; d < D; d += 16) {
            __m512 sum = _mm512_setzero_ps();
            long e = 0;
            for (long p = plan.begin.at[n]; p < plan.begin.at[n + 1]; p++, e++) {
                const __m512 row = widen(rows + plan.row.at[p] * D + d);
                if (!weights) {
                    sum = _mm512_add_ps(sum, row);
                    continue;
                }
                while (!selected[n * plan.E + e]) e++;
                sum = _mm512_fmadd_ps(_mm512_set1_ps(weights[n * plan.E + e]), row, sum);
            }
            store(out + n * D + d, sum);
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

extern "C" {

/// x (N, D) bf16, weights (N, E), selected (N, E), gate_up (E, D, 2F), down (E, F, D) -> out (N, D), hidden (R, 2P) bf16
void experts_forward(long N, long D, long E, long F, long R, int threads, const Half *x, const float *weights,
                     const uint8_t *selected, const float *gate_up, const float *down, Half *out, Half *hidden) {
    const Plan plan(selected, N, E, R);
    const long P = up_to(F, 16);
    Memory<Half> answer(R * D);
#pragma omp parallel num_threads(threads)
    {
        Memory<Pair> in(D / 2 * up_to(2 * P, WIDE)), back(P / 2 * up_to(D, WIDE));
        Memory<Half> inner(up_to(BLOCK, MR) * P);
#pragma omp for schedule(dynamic)
        for (long e = 0; e < E; e++) {
            const long start = plan.start.at[e], count = plan.start.at[e + 1] - start;
            if (!count) continue;
            const float *w = gate_up + e * D * 2 * F, *v = down + e * F * D;
            for (long f = 0; f < P; f += 32)  // 32 of gate next to 32 of up, so that a tile has both
                for (long j = 0, vectors = least(2, (P - f) / 16); j < vectors; j++) {
                    pack_rows(w, 2 * F, D, f + 16 * j, F, in.at + f * D + 16 * j);
                    pack_rows(w + F, 2 * F, D, f + 16 * j, F, in.at + f * D + 16 * (vectors + j));
                }
            for (long c = 0; c < D; c += 16)
                pack_rows(v, D, F, c, D, back.at + c / WIDE * WIDE * (P / 2) + c % WIDE);
            if ((F + 1) / 2 < P / 2)
                for (long c = 0; c < D; c += WIDE)
                    std::memset(back.at + c * (P / 2) + (F + 1) / 2 * WIDE, 0, (P / 2 - (F + 1) / 2) * WIDE * sizeof(Pair));
            for (long block = 0; block < count; block += BLOCK) {
                const long rows = least(BLOCK, count - block), at = start + block;
                for (long f = 0; f < P; f += 32)
                    for (long row = 0; row < rows; row += MR) {
                        const Pair *a[MR];
                        const long here = rows_of(a, row, rows, [&](long i) { return (const Pair *)(x + plan.token.at[at + i] * D); });
                        auto then = [&](auto &s) __attribute__((always_inline)) {
                            constexpr int NZ = sizeof(s[0]) / sizeof(__m512) / 2;
#pragma GCC unroll 6
                            for (long i = 0; i < MR; i++)
                                if (i < here)
#pragma GCC unroll 2
                                    for (int j = 0; j < NZ; j++) {
                                        Half *to = hidden + (at + row + i) * 2 * P + f + 16 * j;
                                        const __m512 gate = rounded(s[i][j]), up = rounded(s[i][NZ + j]);
                                        store(to, gate);
                                        store(to + P, up);
                                        store(inner.at + (row + i) * P + f + 16 * j, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up));
                                    }
                        };
                        if (P - f >= 32) { __m512 s[MR][4]; multiply<4>(a, 1, in.at + f * D, WIDE, D / 2, s); then(s); }
                        else { __m512 s[MR][2]; multiply<2>(a, 1, in.at + f * D, WIDE, D / 2, s); then(s); }
                    }
                product(rows, D, P / 2, back.at, answer.at + at * D, [&](long i) { return (const Pair *)(inner.at + i * P); });
            }
        }
    }
    sum_by_token(plan, D, answer.at, weights, selected, out, threads);
}

/// gradient (N, D) bf16, and inputs and `hidden` of the forward pass -> of_x (N, D) bf16, of_weights (N, E), which must be
/// zeros before, of_gate_up (E, D, 2F), of_down (E, F, D)
void experts_backward(long N, long D, long E, long F, long R, int threads, const Half *gradient, const Half *x,
                      const float *weights, const uint8_t *selected, const float *gate_up, const float *down,
                      const Half *hidden, Half *of_x, float *of_weights, float *of_gate_up, float *of_down) {
    const Plan plan(selected, N, E, R);
    const long P = up_to(F, 16), most = up_to(BLOCK, MR);
    Memory<Half> of_rows(R * D);
#pragma omp parallel num_threads(threads)
    {
        Memory<Pair> in(P * up_to(D, WIDE)), back(D / 2 * up_to(P, WIDE));
        Memory<Pair> xs(most / 2 * D), gradients(most / 2 * D), hidden_pairs(most / 2 * 2 * P), inner_pairs(most / 2 * P);
        Memory<Half> of_hidden(most * 2 * P);
        Memory<float> turned(D * P), dot(most);
#pragma omp for schedule(dynamic)
        for (long e = 0; e < E; e++) {
            const long start = plan.start.at[e], count = plan.start.at[e + 1] - start;
            float *of_w = of_gate_up + e * D * 2 * F, *of_v = of_down + e * F * D;
            if (!count) {
                std::memset(of_w, 0, D * 2 * F * sizeof(float));
                std::memset(of_v, 0, F * D * sizeof(float));
                continue;
            }
            const float *w = gate_up + e * D * 2 * F, *v = down + e * F * D;
            for (long f = 0; f < P; f += 16)  // down transposed: (D, F)
                for (long d = 0; d < D; d += 32)
                    pack_turned(v, D, f, F, d, D, (D - d) / 2, back.at + f / WIDE * WIDE * (D / 2) + d / 2 * WIDE + f % WIDE);
            for (long c = 0; c < D; c += 16)  // gate_up transposed: (2P, D)
                for (long half = 0; half < 2; half++)
                    for (long f = 0; f < P; f += 32)
                        pack_turned(w + half * F, 2 * F, c, D, f, F, (P - f) / 2,
                                    in.at + c / WIDE * WIDE * P + (half * P + f) / 2 * WIDE + c % WIDE);
            for (long block = 0; block < count; block += BLOCK) {
                const long rows = least(BLOCK, count - block), at = start + block, pairs = up_to(rows, MR) / 2;
                const int32_t *token = plan.token.at + at;
                pair_rows(x, token, rows, D, xs.at);
                pair_rows(gradient, token, rows, D, gradients.at);
                for (long r = (rows + 1) / 2; r < pairs; r++) {
                    std::memset(xs.at + r * D, 0, D * sizeof(Pair));
                    std::memset(gradients.at + r * D, 0, D * sizeof(Pair));
                }
                std::memset(dot.at, 0, most * sizeof(float));
                for (long f = 0; f < P; f += WIDE)
                    for (long row = 0; row < rows; row += MR) {
                        const Pair *a[MR];
                        const long here = rows_of(a, row, rows, [&](long i) { return (const Pair *)(gradient + token[i] * D); });
                        for (long i = 0; i < here; i++)
                            for (long half = 0; half < 2; half++) {
                                const Half *from = hidden + (at + row + i) * 2 * P + half * P + f;
                                _mm_prefetch(from, _MM_HINT_T0);
                                _mm_prefetch(from + 32, _MM_HINT_T0);
                            }
                        tile(least(4, (P - f) / 16), a, 1, back.at + f * (D / 2), WIDE, D / 2, [&](auto &s) __attribute__((always_inline)) {
                            constexpr int NZ = sizeof(s[0]) / sizeof(__m512);
#pragma GCC unroll 3
                            for (long i = 0; i < MR; i += 2) {
                                __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
#pragma GCC unroll 4
                                for (int j = 0; j < NZ; j++) {
                                    const long column = f + 16 * j;
                                    __m512 inner[2], of_gate[2], of_up[2];
                                    for (int r = 0; r < 2; r++) {  // a padding row has zeros in `xs` and `gradients`
                                        const long own = row + (i + r < here ? i + r : here - 1);
                                        const Half *from = hidden + (at + own) * 2 * P + column;
                                        const __m512 weight = _mm512_set1_ps(weights[token[own] * E + e]);
                                        const __m512 gate = widen(from), up = widen(from + P), sharp = sigmoid(gate);
                                        const __m512 silu = _mm512_mul_ps(gate, sharp), product = _mm512_mul_ps(silu, up);
                                        const __m512 of_inner = _mm512_mul_ps(weight, s[i + r][j]);
                                        sum[r] = _mm512_fmadd_ps(s[i + r][j], product, sum[r]);
                                        inner[r] = _mm512_mul_ps(weight, product);
                                        of_up[r] = _mm512_mul_ps(of_inner, silu);
                                        // silu' = sharp (1 + gate (1 - sharp)) = sharp + silu - silu sharp
                                        of_gate[r] = _mm512_mul_ps(_mm512_mul_ps(of_inner, up), _mm512_add_ps(sharp, _mm512_fnmadd_ps(silu, sharp, silu)));
                                    }
                                    Half *to = of_hidden.at + (row + i) * 2 * P + column;
                                    Pair *beside = hidden_pairs.at + (row + i) / 2 * 2 * P + column;
                                    const __m512i g = both(of_gate[0], of_gate[1]), u = both(of_up[0], of_up[1]);
                                    _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(g));
                                    _mm256_storeu_si256((__m256i *)(to + 2 * P), _mm512_extracti64x4_epi64(g, 1));
                                    _mm256_storeu_si256((__m256i *)(to + P), _mm512_castsi512_si256(u));
                                    _mm256_storeu_si256((__m256i *)(to + 3 * P), _mm512_extracti64x4_epi64(u, 1));
                                    _mm512_storeu_si512(beside, paired(g));
                                    _mm512_storeu_si512(beside + P, paired(u));
                                    _mm512_storeu_si512(inner_pairs.at + (row + i) / 2 * P + column, paired(both(inner[0], inner[1])));
                                }
                                dot.at[row + i] += _mm512_reduce_add_ps(sum[0]);
                                dot.at[row + i + 1] += _mm512_reduce_add_ps(sum[1]);
                            }
                        });
                    }
                for (long r = 0; r < rows; r++) of_weights[token[r] * E + e] = dot.at[r];
                product(rows, D, P, in.at, of_rows.at + at * D, [&](long i) { return (const Pair *)(of_hidden.at + i * 2 * P); });
                of_weights_product(D, F, pairs, xs.at, hidden_pairs.at, 2 * P, of_w, 2 * F, block > 0);
                of_weights_product(D, F, pairs, xs.at, hidden_pairs.at + P, 2 * P, of_w + F, 2 * F, block > 0);
                of_weights_product(D, P, pairs, gradients.at, inner_pairs.at, P, turned.at, P, block > 0);
            }
            for (long f = 0; f < F; f++)
                for (long d = 0; d < D; d++) of_v[f * D + d] = turned.at[d * P + f];
        }
    }
    sum_by_token(plan, D, of_rows.at, nullptr, selected, of_x, threads);
}
}
