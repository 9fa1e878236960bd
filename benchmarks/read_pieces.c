/* GB/s of reading pieces of memory that lie anywhere in some gigabytes, as two numbers a line: bytes of a piece, GB/s.
 *
 *     read_pieces THREADS GIGABYTES ROUNDS
 *
 * Pieces are whole cache lines in huge pages, shared out among threads in order; each round draws other places, and the
 * fastest of them counts.
 */
#define _GNU_SOURCE
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SHORTEST = 1 << 12, LONGEST = 1 << 22, READ = 1 << 28 };

static uint64_t state = 88172645463325252u;
static uint64_t draw(void) { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; }

static uint64_t sum_of(const uint64_t *from, int64_t bytes) {
    uint64_t sums[32] = {0}, total = 0; /* four lines at a time */
    for (int64_t i = 0; i < bytes / 8; i += 32)
        for (int j = 0; j < 32; j++) sums[j] += from[i + j];
    for (int j = 0; j < 32; j++) total += sums[j];
    return total;
}

int main(int count, char **words) {
    if (count != 4) return fprintf(stderr, "read_pieces THREADS GIGABYTES ROUNDS\n"), 2;
    int threads = atoi(words[1]), rounds = atoi(words[3]);
    int64_t bytes = atoll(words[2]) << 30, *places = malloc(sizeof *places * (READ / SHORTEST));
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || !places) return fprintf(stderr, "no memory\n"), 1;
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
    uint64_t total = 0;
    for (int64_t piece = SHORTEST; piece <= LONGEST; piece *= 2) {
        int64_t pieces = READ / piece;
        double best = 1e9;
        for (int round = 0; round < rounds; round++) {
            for (int64_t i = 0; i < pieces; i++) places[i] = (int64_t)(draw() % (uint64_t)(bytes / piece)) * piece;
            double begin = omp_get_wtime();
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : total)
            for (int64_t i = 0; i < pieces; i++) total += sum_of((const uint64_t *)(memory + places[i]), piece);
            double seconds = omp_get_wtime() - begin;
            best = seconds < best ? seconds : best;
        }
        printf("%lld %.1f\n", (long long)piece, READ / best / 1e9);
    }
    return total == 0; /* so that nothing is left out */
}
