// SwiGLU experts for the chosen (token, expert) pairs, forward and backward: bf16 products by AVX512-BF16. The operations
// around them (gather, silu, weighting, casts) are done while the numbers are in registers.
//
// N tokens, D width (a multiple of 16), E experts, F hidden width, P = F rounded up to 16, R rows = chosen pairs.
// A row of `hidden` is gate (P) | up (P).

#include <omp.h>

#include <cstring>

#include "plan.h"
#include "products.h"
#include "vectors.h"

namespace {

constexpr long BLOCK = 240;  // rows of an expert at a time, so that their results stay in L2

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
