// The rows that the experts compute, and sums over the rows of each token. N tokens, D width, E experts, R rows.
#pragma once

#include <cstring>

#include "vectors.h"

namespace {

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

}  // namespace
