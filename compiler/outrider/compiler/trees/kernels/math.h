/* exp and log for the output transforms: no libc, and the same bits on every target.
 *
 * Idea: only IEEE double additions, multiplications and divisions in a fixed order (the build forbids contraction to
 * fused multiply-adds), so results do not depend on the compiler, the C library or the instruction set.
 * Error: within 2 ulp of the exact value, far below the float32 that results are rounded to.
 * Limits: exp saturates to 0 and infinity outside [-745.2, 709.8]; log takes finite values above 0.
 */
#ifndef OUTRIDER_MATH_H
#define OUTRIDER_MATH_H

#include <stdint.h>

static inline double from_bits(uint64_t bits) {
    union { uint64_t bits; double value; } word = {bits};
    return word.value;
}

static inline uint64_t to_bits(double value) {
    union { double value; uint64_t bits; } word = {value};
    return word.bits;
}

/* 2^n for n in [-1022, 1023]. */
static inline double power_of_two(int n) { return from_bits((uint64_t)(n + 1023) << 52); }

/* exp(x) = 2^n exp(r), |r| <= ln(2)/2, by the Taylor series of degree 13, whose remainder is below 5e-18. Its terms
 * are added in pairs of pairs (Estrin's scheme): one after the other each would wait for the last. */
static inline double exponential(double x) {
    if (x != x) return x;
    if (x > 709.79) return from_bits(0x7ff0000000000000u);
    if (x < -745.2) return 0.0;
    int n = (int)(x * 1.4426950408889634 + (x < 0 ? -0.5 : 0.5));
    /* ln(2) in two parts: the first has 32 bits, so that n times it is exact. */
    double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    double r2 = r * r, r4 = r2 * r2;
    double terms0 = (1.0 + r) + r2 * (1.0 / 2.0 + r * (1.0 / 6.0));
    double terms4 = (1.0 / 24.0 + r * (1.0 / 120.0)) + r2 * (1.0 / 720.0 + r * (1.0 / 5040.0));
    double terms8 = (1.0 / 40320.0 + r * (1.0 / 362880.0)) + r2 * (1.0 / 3628800.0 + r * (1.0 / 39916800.0));
    double terms12 = 1.0 / 479001600.0 + r * (1.0 / 6227020800.0);
    double sum = (terms0 + r4 * terms4) + (r4 * r4) * (terms8 + r4 * terms12);
    /* Two factors, since 2^n alone may lie outside the range of normal numbers. */
    int half = n / 2;
    return sum * power_of_two(half) * power_of_two(n - half);
}

/* log(x) = n ln(2) + log(m), m in [sqrt(1/2), sqrt(2)), by log(m) = 2 artanh((m - 1) / (m + 1)). x is normal. */
static inline double logarithm(double x) {
    uint64_t bits = to_bits(x);
    int n = (int)(bits >> 52) - 1023;
    double m = from_bits((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        n += 1;
    }
    double s = (m - 1.0) / (m + 1.0), square = s * s, sum = 0.0;
    for (int odd = 25; odd >= 1; odd -= 2) sum = sum * square + 1.0 / odd;
    return n * 0.6931471805599453 + 2.0 * s * sum;
}

/* log(1 + e^x) without loss where e^x is small (the rounding of 1 + e is divided out) or large. */
static inline double log_one_plus_exp(double x) {
    if (x > 40.0) return x;
    double e = exponential(x), u = 1.0 + e;
    if (u == 1.0) return e;
    return logarithm(u) * (e / (u - 1.0));
}

#endif
