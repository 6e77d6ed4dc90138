/* The most multiply-and-adds that one core does: independent accumulators in registers, and no memory.
   Run as `peaks KIND`; prints operations a second, 2 for a multiply and an add. What this build or kernel lacks it says
   on standard error, and ends with 2. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

#if defined(__AVX512F__)
typedef __m512 floats;
typedef __m512i bytes;
#define FMA(a, x, y) _mm512_fmadd_ps(x, y, a)
#define HAS_FMA 1
#if defined(__AVX512VNNI__)
#define DOT(a, x, y) _mm512_dpbusd_epi32(a, x, y)
#endif
#define KEEP(a) __asm__ volatile("" : "+v"(a))
#elif defined(__x86_64__) && defined(__FMA__) && defined(__AVX2__)
typedef __m256 floats;
typedef __m256i bytes;
#define FMA(a, x, y) _mm256_fmadd_ps(x, y, a)
#define HAS_FMA 1
#if defined(__AVXVNNI__)
#define DOT(a, x, y) _mm256_dpbusd_avx_epi32(a, x, y)
#endif
#define KEEP(a) __asm__ volatile("" : "+x"(a))
#elif defined(__aarch64__)
typedef float32x4_t floats;
#define FMA(a, x, y) vfmaq_f32(a, x, y)
#define HAS_FMA 1
typedef int8x16_t bytes;
#if defined(__ARM_FEATURE_DOTPROD)
#define DOT(a, x, y) ((int8x16_t)vdotq_s32((int32x4_t)(a), x, y))
#endif
#define KEEP(a) __asm__ volatile("" : "+w"(a))
#endif

enum { CHAINS = 12, STEPS = 2000000, ROUNDS = 7 }; /* as many chains as hide the latency and as there are registers */

#define EACH(one) one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11)

#ifdef HAS_FMA
static double run_floats(void) {
    floats x, y, a[CHAINS];
    memset(&x, 0, sizeof x);
    memset(&y, 0, sizeof y);
    memset(a, 0, sizeof a);
#define START(i) floats a##i = a[i];
    EACH(START)
    KEEP(x);
    KEEP(y);
    double begin = now();
    for (int i = 0; i < STEPS; i++) {
#define STEP(i) a##i = FMA(a##i, x, y); KEEP(a##i);
        EACH(STEP)
    }
    return 2.0 * (sizeof(floats) / 4) * CHAINS * STEPS / (now() - begin);
}
#endif

#ifdef DOT
static double run_bytes(void) {
    bytes x, y, a[CHAINS];
    memset(&x, 0, sizeof x);
    memset(&y, 0, sizeof y);
    memset(a, 0, sizeof a);
#define START_BYTES(i) bytes a##i = a[i];
    EACH(START_BYTES)
    KEEP(x);
    KEEP(y);
    double begin = now();
    for (int i = 0; i < STEPS; i++) {
#define STEP_BYTES(i) a##i = DOT(a##i, x, y); KEEP(a##i);
        EACH(STEP_BYTES)
    }
    return 2.0 * sizeof(bytes) * CHAINS * STEPS / (now() - begin);
}
#endif

#ifdef __AMX_INT8__
enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18, ROWS = 16, ROW_BYTES = 64, TILE_STEPS = 200000 };

static double run_tiles(void) {
    struct { uint8_t palette, start, zero[14]; uint16_t width[16]; uint8_t rows[16]; } shape;
    if (syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) != 0) return 0;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int i = 0; i < 8; i++) shape.width[i] = ROW_BYTES, shape.rows[i] = ROWS;
    _tile_loadconfig(&shape);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5); _tile_zero(6);
    double begin = now();
    for (int i = 0; i < TILE_STEPS; i++) {
        _tile_dpbusd(0, 4, 5); _tile_dpbusd(1, 4, 6); _tile_dpbusd(2, 4, 5); _tile_dpbusd(3, 4, 6);
    }
    double seconds = now() - begin;
    _tile_release();
    return 2.0 * ROWS * ROWS * ROW_BYTES * 4 * TILE_STEPS / seconds;
}
#endif

int main(int count, char **given) {
    double (*run)(void) = 0;
    if (count != 2) return 1;
#ifdef HAS_FMA
    if (strcmp(given[1], "fp32") == 0) run = run_floats;
#endif
#ifdef DOT
    if (strcmp(given[1], "int8") == 0) run = run_bytes;
#endif
#ifdef __AMX_INT8__
    if (strcmp(given[1], "int8-tiles") == 0) run = run_tiles;
#endif
    if (!run) {
        fputs("the CPU has no instruction for it\n", stderr);
        return 2;
    }
    double best = 0;
    for (int i = 0; i < ROUNDS; i++) {
        double rate = run();
        if (rate > best) best = rate;
    }
    if (best == 0) {
        fputs("the kernel gives no tile registers\n", stderr);
        return 2;
    }
    printf("%.6g\n", best);
    return 0;
}
